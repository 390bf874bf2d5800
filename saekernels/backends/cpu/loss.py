"""Cross-entropies and KL of hidden states under one head, on the native CPU kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekernels.backends.cpu.native import module, vector, view


def _problem(
    h_p: Tensor,
    h_q: Any,
    W_U: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    ignore_index: int,
) -> tuple[Any, ...]:
    """As both kernels take it, with their own kind of h_q; the caller keeps the contiguous targets alive."""
    threads = torch.get_num_threads()
    return view(h_p), h_q, view(W_U), vector(bias), targets.data_ptr(), softcap or 0.0, ignore_index, threads


def linear_ce_kl(
    h_p: Tensor,
    h_q: Tensor,
    W_U: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ce_p [T] and, as h_q has them, [T] or [R, T]: ce_q, KL(p || q) and top-1 agreement; float32."""
    targets = targets.contiguous()
    ce_p = torch.empty(h_p.shape[0], dtype=torch.float32, device="cpu")
    ce_q, kl, agree = (torch.empty(h_q.shape[:-1], dtype=torch.float32, device="cpu") for _ in range(3))
    streams = [view(stream) for stream in (h_q if h_q.dim() == 3 else [h_q])]
    module().linear_ce_kl(
        *_problem(h_p, streams, W_U, targets, bias, softcap, ignore_index),
        ce_p.data_ptr(),
        ce_q.data_ptr(),
        kl.data_ptr(),
        agree.data_ptr(),
    )
    return ce_p, ce_q, kl, agree


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

    Logits are recomputed a tile at a time; the losses stand for the sums over the vocabulary.
    """
    targets = targets.contiguous()
    losses = tuple(loss.contiguous() for loss in (ce_p, ce_q, kl))
    grads = tuple(grad.contiguous() for grad in (grad_ce_p, grad_ce_q, grad_kl))
    d_hp, d_hq = (h_p.new_zeros(h_p.shape if need_h else 0) for _ in range(2))
    # Every row is written, unless no token counts.
    make = W_U.new_empty if bool((targets != ignore_index).any()) else W_U.new_zeros
    d_W = make(W_U.shape if need_W else 0)
    d_bias = make(W_U.shape[0] if need_bias else 0, dtype=None if bias is None else bias.dtype)
    module().linear_ce_kl_backward(
        *_problem(h_p, view(h_q), W_U, targets, bias, softcap, ignore_index),
        tuple(loss.data_ptr() for loss in losses),
        tuple(grad.data_ptr() for grad in grads),
        view(d_hp) if need_h else None,
        view(d_hq) if need_h else None,
        view(d_W) if need_W else None,
        vector(d_bias) if need_bias else None,
    )
    return d_hp, d_hq, d_W, d_bias
