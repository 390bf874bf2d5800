"""JumpReLU's codes with gradients of its thresholds, without a [tokens, latents] matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekernels.ops import _check, encode_threshold
from saekernels.ops.encode_threshold import CsrCodes


class JumpReLUCodes(NamedTuple):
    """codes: the entries that are active or near their threshold, in CSR; those below it have the value 0.

    l0: a scalar, the mean number of active latents of a row. active: [nnz], 1 or 0 for each entry.
    pre: [nnz], their pre-activations, with the gradients of those alone.
    """

    codes: CsrCodes
    l0: Tensor
    active: Tensor
    pre: Tensor


def encode_jumprelu(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    threshold: Tensor,
    *,
    bandwidth: float,
    pre_bias: Tensor | None = None,
) -> JumpReLUCodes:
    """pre * (pre > threshold) for pre = (x - pre_bias) @ W_enc.T + b_enc, and how many are active, with gradients.

    A threshold's gradients are pseudo-derivatives, of a rectangle as wide as the bandwidth around it (Rajamanoharan et
    al. 2024, arXiv 2407.14435): of a value with respect to its threshold -threshold / bandwidth, of the count of active
    latents -1 / bandwidth, for |pre - threshold| < bandwidth / 2. No other pre-activation counts, so that the entries
    above threshold - bandwidth / 2 are enough.

    Args:
        x: [T, d], float32, bfloat16 or float16.
        W_enc: [F, d]; x's dtype.
        b_enc: [F] or None.
        threshold: [F], at least 0 each (negative ones count as 0, as in `SAE`).
        bandwidth: above 0, in the unit of pre-activations.
        pre_bias: [d] or None, subtracted from x.

    Returns:
        JumpReLUCodes: values are differentiable with respect to x, W_enc, b_enc, pre_bias and threshold; l0 and active
        with respect to threshold; pre with respect to all but threshold.

    Raises:
        ValueError: x that is not [T, d], or a bandwidth that is not above 0; and as `encode_threshold`.
    """
    if x.dim() != 2:
        raise ValueError(f"x: got shape {list(x.shape)}, need [T, d]")
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth: got {bandwidth!r}, need a finite number above 0")
    _check.tensor("threshold", threshold)
    _check.matrix("W_enc", W_enc, "F", "d")
    _check.shape("threshold", threshold, [("F", W_enc.shape[0])])
    threshold = threshold.clamp(min=0)
    # A little lower than half the band, so that rounding loses no entry: what counts is decided per entry.
    low = threshold.detach() - 0.501 * bandwidth
    pre, indices, offsets = encode_threshold(x, W_enc, b_enc, low, pre_bias=pre_bias)
    values, active = jump(pre, threshold.index_select(0, indices.long()), bandwidth)
    l0 = active.sum() / max(1, len(x))
    return JumpReLUCodes(CsrCodes(values, indices, offsets), l0, active, pre)


def jump(pre: Tensor, threshold: Tensor, bandwidth: float, *, to_input: bool = False) -> tuple[Tensor, Tensor]:
    """(pre * (pre > threshold), whether active as a number) of entries, both [nnz], with `encode_jumprelu`'s gradients.

    pre, threshold: [nnz], of each entry. to_input: beside what passes through its value, a pre-activation gets the
    negative of what its threshold gets.
    """
    return _Jump.apply(pre, threshold, bandwidth, to_input)  # type: ignore[no-untyped-call]


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        active = (pre > threshold).to(pre.dtype)
        return pre * active, active

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        d_value, d_active = grads
        # Divided before it is compared, as tools do, so that entries at the edge of the band are in it here and there.
        near = ((pre - threshold) / ctx.bandwidth).abs() < 0.5
        d_threshold = -(threshold * d_value + d_active) / ctx.bandwidth * near
        d_pre = d_value * (pre > threshold)
        return d_pre - d_threshold if ctx.to_input else d_pre, d_threshold, None, None
