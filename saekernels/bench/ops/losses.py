"""The loss of a training step of each class of SAE, twice: from sparse entries by this library, from dense latents.

Of x [T, d] and weights by name: W_enc [F, d], b_enc [F], W_dec [F, d], b_dec [d], which is subtracted from x as well;
threshold [F] (JumpReLU); b_gate, b_mag and r_mag [F] in place of b_enc (Gated). Squared errors are summed over the
width; Matryoshka's are summed over its five prefixes; L1 weighs latents by the norms of their decoder rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from saekernels.bench.measure.trainers import widths
from saekernels.ops import CsrCodes, decode, decode_csr, encode_threshold, encode_topk
from saekernels.sae.batch_topk import encode_batch_topk
from saekernels.sae.jumprelu import encode_jumprelu
from saekernels.sae.prefixes import decode_prefixes

PENALTY = 0.1  # of L0 and of L1
BANDWIDTH = 0.05
Weights = dict[str, Tensor]
Loss = Callable[[Tensor], Tensor]


def squared(out: Tensor, x: Tensor) -> Tensor:
    """|out - x|^2, the mean over tokens: a scalar."""
    return (out - x).square().sum(-1).mean()


def sparse(kind: str, w: Weights, k: int) -> Loss:
    """The loss of x, by this library; no [T, F] is made."""
    if kind in ("batch_topk", "matryoshka"):
        return _sparse_batch(w, k, widths(len(w["W_enc"])) if kind == "matryoshka" else [len(w["W_enc"])])
    return {
        "topk": lambda x: _sparse_topk(w, x, k),
        "jumprelu": lambda x: _sparse_jumprelu(w, x),
        "standard": lambda x: _sparse_standard(w, x),
        "gated": lambda x: _sparse_gated(w, x),
    }[kind]


def _sparse_topk(w: Weights, x: Tensor, k: int) -> Tensor:
    values, indices = encode_topk(x, w["W_enc"], w["b_enc"], k=k, pre_bias=w["b_dec"])
    return squared(decode(values, indices, w["W_dec"], w["b_dec"]), x)


def _sparse_batch(w: Weights, k: int, levels: list[int]) -> Loss:
    least: float | None = None  # the guess that a trainer has from the step before

    def loss(x: Tensor) -> Tensor:
        nonlocal least
        codes = encode_batch_topk(x, w["W_enc"], w["b_enc"], n=k * len(x), pre_bias=w["b_dec"], guess=least)
        least = float(codes.values.detach().min()) if codes.values.numel() else 0.0
        prefixes = decode_prefixes(codes, w["W_dec"], levels) + w["b_dec"]
        return squared(prefixes, x[:, None]) * len(levels)

    return loss


def _sparse_jumprelu(w: Weights, x: Tensor) -> Tensor:
    found = encode_jumprelu(x, w["W_enc"], w["b_enc"], w["threshold"], bandwidth=BANDWIDTH, pre_bias=w["b_dec"])
    return squared(decode_csr(*found.codes, w["W_dec"], w["b_dec"]), x) + PENALTY * found.l0


def _sparse_standard(w: Weights, x: Tensor) -> Tensor:
    codes = encode_threshold(x, w["W_enc"], w["b_enc"], 0.0, pre_bias=w["b_dec"])
    return squared(decode_csr(*codes, w["W_dec"], w["b_dec"]), x) + _sparse_l1(w, codes)


def _sparse_gated(w: Weights, x: Tensor) -> Tensor:
    s, indices, offsets = encode_threshold(x, w["W_enc"], None, -w["b_gate"].detach(), pre_bias=w["b_dec"])
    gates = s + w["b_gate"].index_select(0, indices)
    values = (s * w["r_mag"].exp().index_select(0, indices) + w["b_mag"].index_select(0, indices)).relu()
    out = decode_csr(values, indices, offsets, w["W_dec"], w["b_dec"])
    via_gates = decode_csr(gates, indices, offsets, w["W_dec"], w["b_dec"])
    return squared(out, x) + squared(via_gates, x) + _sparse_l1(w, CsrCodes(gates, indices, offsets))


def _sparse_l1(w: Weights, codes: CsrCodes) -> Tensor:
    norms = w["W_dec"].norm(dim=1).index_select(0, codes.indices)
    return PENALTY * (codes.values * norms).sum() / (len(codes.offsets) - 1)


def dense(kind: str, w: Weights, k: int) -> Loss:
    """The same of all latents [T, F], in torch alone."""

    def loss(x: Tensor) -> Tensor:
        s = functional.linear(x - w["b_dec"], w["W_enc"])
        if kind == "gated":
            return _dense_gated(w, x, s)
        pre = s + w["b_enc"]
        if kind == "jumprelu":
            codes, active = _Jump.apply(pre, w["threshold"])  # type: ignore[no-untyped-call]
            return squared(codes @ w["W_dec"] + w["b_dec"], x) + PENALTY * active.sum(-1).mean()
        codes = pre.relu()
        if kind == "standard":
            return squared(codes @ w["W_dec"] + w["b_dec"], x) + _dense_l1(w, codes)
        per_row = codes if kind == "topk" else codes.flatten()
        values, indices = per_row.topk(k if kind == "topk" else k * len(x), sorted=False)
        codes = torch.zeros_like(per_row).scatter(-1, indices, values).view_as(pre)
        if kind != "matryoshka":
            return squared(codes @ w["W_dec"] + w["b_dec"], x)
        total, out, start = x.new_zeros(()), w["b_dec"], 0
        for end in widths(len(w["W_enc"])):
            out = out + codes[:, start:end] @ w["W_dec"][start:end]
            total, start = total + squared(out, x), end
        return total

    return loss


def _dense_gated(w: Weights, x: Tensor, s: Tensor) -> Tensor:
    gates = (s + w["b_gate"]).relu()
    codes = (s * w["r_mag"].exp() + w["b_mag"]).relu() * (gates > 0)
    out, via_gates = (latents @ w["W_dec"] + w["b_dec"] for latents in (codes, gates))
    return squared(out, x) + squared(via_gates, x) + _dense_l1(w, gates)


def _dense_l1(w: Weights, codes: Tensor) -> Tensor:
    return PENALTY * (codes * w["W_dec"].norm(dim=1)).sum(-1).mean()


class _Jump(torch.autograd.Function):
    """(pre * active, active) of pre [T, F] and thresholds [F], with the rectangle's gradients of the thresholds."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        active = (pre > threshold).to(pre.dtype)
        return pre * active, active

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold) / BANDWIDTH).abs() < 0.5
        d_threshold = -((threshold * grads[0] + grads[1]) * near).sum(0) / BANDWIDTH
        return grads[0] * (pre > threshold), d_threshold
