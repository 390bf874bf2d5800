"""A loss on the pre-activations of dead latents, without a [tokens, latents] matrix, though nearly all of it counts."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.ops import _check
from saekernels.sae.jumprelu import JumpReLUCodes


def pre_act_loss(
    found: JumpReLUCodes,
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    threshold: Tensor,
    latents: Tensor,
    *,
    norms: Tensor | None = None,
    pre_bias: Tensor | None = None,
) -> Tensor:
    """The sum over some latents of relu(threshold - pre) * norm, the mean over rows: it draws dead ones to life.

    Conerly et al. 2025, "Dictionary Learning Optimization Techniques". Reads the encoder's rows of those latents once,
    and of x no more than its mean.

    Args:
        found: what `encode_jumprelu` gave for the same x, W_enc, b_enc, threshold and pre_bias.
        x: [T, d], at least one row.
        W_enc: [F, d].
        b_enc: [F] or None.
        threshold: [F] (negative ones count as 0).
        latents: [n] int64, each once, e.g. `DeadLatents.indices()`.
        norms: [F], such as those of the decoder's rows, or None for 1 each.
        pre_bias: [d] or None, subtracted from x.

    Returns:
        A scalar in at least float32, differentiable with respect to x, W_enc, b_enc, threshold, norms and pre_bias.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range, by name.
    """
    _check_pre_act(found, x, latents, W_enc=W_enc, b_enc=b_enc, threshold=threshold, norms=norms, pre_bias=pre_bias)
    mean = wide(x).mean(0)
    if pre_bias is not None:
        mean = mean - pre_bias
    threshold = threshold.clamp(min=0)
    return shortfall(found.pre, found.codes.indices, len(x), mean, W_enc, b_enc, threshold, latents, norms)


def shortfall(
    pre: Tensor,
    indices: Tensor,
    tokens: int,
    mean: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    threshold: Tensor,
    latents: Tensor,
    norms: Tensor | None,
) -> Tensor:
    """`pre_act_loss` from pre-activations [nnz] of T rows, all above their threshold among them, and x's mean [d].

    relu(a) = a + relu(-a): the first is affine in x, so that its mean needs only that of x; the second is 0 but for
    pre-activations above their threshold.
    """
    kept = threshold.new_zeros(len(threshold), dtype=torch.bool).index_fill(0, latents, True)
    above = kept[indices.long()] & (pre.detach() > threshold.detach()[indices.long()])
    at = indices[above].long()
    over = wide(pre)[above] - wide(threshold)[at]
    under = wide(threshold)[latents] - wide(W_enc.index_select(0, latents)) @ mean
    if b_enc is not None:
        under = under - wide(b_enc)[latents]
    if norms is not None:
        over, under = over * norms[at], under * norms[latents]
    return under.sum() + over.sum() / tokens


def wide(x: Tensor) -> Tensor:
    """In at least float32, which sums of many terms need."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_pre_act(found: object, x: Tensor, latents: Tensor, **given: Tensor | None) -> None:
    if not isinstance(found, JumpReLUCodes):
        raise TypeError(f"found: got {type(found).__name__}, need JumpReLUCodes")
    _check.tensors(x=x, latents=latents, **given)
    W_enc, rows = given["W_enc"], len(found.codes.offsets) - 1
    assert W_enc is not None
    _check.matrix("W_enc", W_enc, "F", "d")
    if not rows:
        raise ValueError("found: got no row, need at least one to take the mean of")
    _check.shape("x", x, [("T", rows), ("d", W_enc.shape[1])])
    for name in ("b_enc", "threshold", "norms", "pre_bias"):
        value, at = given[name], int(name == "pre_bias")
        if value is not None:
            _check.shape(name, value, [("Fd"[at], W_enc.shape[at])])
    if latents.dim() != 1 or latents.dtype != torch.int64:
        raise ValueError(f"latents: got {latents.dtype} of shape {list(latents.shape)}, need int64 [n]")
    _check.indices_in_range(latents, W_enc.shape[0], "latents")
    if latents.device.type == "cpu" and latents.unique().numel() != latents.numel():
        raise ValueError("latents: got some of them more than once, need each once")
