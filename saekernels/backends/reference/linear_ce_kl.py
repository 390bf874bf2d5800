"""Cross-entropy of residual streams under one unembedding, and the KL of each from the first, a chunk at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.backends.reference.rows import accumulator, linear_rows, row_chunks


def _logits(h: Tensor, W_U: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    z = linear_rows(h.to(accumulator(h.dtype)), W_U, bias)
    return z if softcap is None else torch.tanh(z / softcap) * softcap


def compare_logits(z_p: Tensor, z_q: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ce_p, ce_q, KL(p || q) and top-1 agreement, each [T], of logits z_p, z_q [T, V]; targets [T] int64."""
    log_p, log_q = z_p.log_softmax(1), z_q.log_softmax(1)
    target = targets[:, None]
    p = log_p.exp()
    # 0 * (-inf - x) would be NaN where p has no mass; the limit is 0.
    terms = torch.where(p == 0, torch.zeros_like(p), p * (log_p - log_q))
    defined = ~(z_p.isnan().any(1) | z_q.isnan().any(1))
    agree = torch.where(defined, (z_p.argmax(1) == z_q.argmax(1)).to(z_p.dtype), torch.nan)
    return -log_p.gather(1, target)[:, 0], -log_q.gather(1, target)[:, 0], terms.sum(1), agree


def linear_ce_kl(
    h_p: Tensor,
    h_q: Tensor,
    W_U: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `saekernels.linear_ce_kl`; h_p [T, d], h_q [T, d] or [R, T, d]."""
    wide = accumulator(h_p.dtype)
    ce_p = torch.zeros(h_p.shape[0], dtype=wide, device=h_p.device)
    ce_q, kl, agree = (torch.zeros(h_q.shape[:-1], dtype=wide, device=h_p.device) for _ in range(3))
    streams = [(h_q, ce_q, kl, agree)] if h_q.dim() == 2 else list(zip(h_q, ce_q, kl, agree, strict=True))
    counted = (targets != ignore_index).nonzero()[:, 0]
    for part in row_chunks(counted.numel(), W_U.shape[0]):
        rows = counted[part]
        z_p = _logits(h_p[rows], W_U, bias, softcap)
        for stream, own_ce, own_kl, own_agree in streams:
            z_q = _logits(stream[rows], W_U, bias, softcap)
            ce_p[rows], own_ce[rows], own_kl[rows], own_agree[rows] = compare_logits(z_p, z_q, targets[rows])
    return ce_p, ce_q, kl, agree


def _softcap_slope(z: Tensor, softcap: float | None) -> Tensor:
    return torch.ones_like(z) if softcap is None else 1 - (z / softcap) ** 2


def linear_ce_kl_backward(
    grad_ce_p: Tensor,
    grad_ce_q: Tensor,
    grad_kl: Tensor,
    ce_p: Tensor,
    ce_q: Tensor,
    kl: Tensor,
    h_p: Tensor,
    h_q: Tensor,
    W_U: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    ignore_index: int,
    need_h: bool,
    need_W: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h_p [T, d], h_q [T, d], W_U [V, d] and bias [V], empty where not needed.

    Logits are recomputed a chunk at a time, and so are ce_p and ce_q, which other backends start from.
    With p, q the two distributions: d CE_p / dz_p = p - onehot, d CE_q / dz_q = q - onehot, d KL / dz_q = q - p and
    d KL / dz_p = p * (log p - log q - KL).
    """
    wide = accumulator(h_p.dtype)
    d_hp, d_hq = torch.zeros_like(h_p), torch.zeros_like(h_q)
    d_W = torch.zeros(W_U.shape, dtype=wide, device=W_U.device)
    d_bias = torch.zeros(W_U.shape[0], dtype=wide, device=W_U.device)
    counted = (targets != ignore_index).nonzero()[:, 0]
    for part in row_chunks(counted.numel(), W_U.shape[0]):
        rows = counted[part]
        z_p = _logits(h_p[rows], W_U, bias, softcap)
        z_q = _logits(h_q[rows], W_U, bias, softcap)
        log_p, log_q = z_p.log_softmax(1), z_q.log_softmax(1)
        p, q = log_p.exp(), log_q.exp()
        gap = torch.where(p == 0, torch.zeros_like(p), log_p - log_q)
        onehot = torch.zeros_like(p).scatter_(1, targets[rows, None], 1.0)
        g_p, g_q, g_kl = grad_ce_p[rows, None], grad_ce_q[rows, None], grad_kl[rows, None]
        d_zp = (g_p * (p - onehot) + g_kl * p * (gap - kl[rows, None])) * _softcap_slope(z_p, softcap)
        d_zq = (g_q * (q - onehot) + g_kl * (q - p)) * _softcap_slope(z_q, softcap)
        d_hp[rows] = (d_zp @ W_U.to(wide)).to(h_p.dtype)
        d_hq[rows] = (d_zq @ W_U.to(wide)).to(h_q.dtype)
        d_W += d_zp.T @ h_p[rows].to(wide) + d_zq.T @ h_q[rows].to(wide)
        d_bias += d_zp.sum(0) + d_zq.sum(0)
    like = W_U if bias is None else bias
    outputs = ((d_hp, need_h), (d_hq, need_h), (d_W.to(W_U.dtype), need_W), (d_bias.to(like.dtype), need_bias))
    d_hp, d_hq, d_W, d_bias = (gradient if needed else gradient.new_empty(0) for gradient, needed in outputs)
    return d_hp, d_hq, d_W, d_bias
