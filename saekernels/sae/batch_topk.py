"""BatchTopK's codes: the largest pre-activations of a whole batch, without a [tokens, latents] matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from saekernels.ops import _check, encode_threshold, encode_topk
from saekernels.ops.encode_threshold import CsrCodes
from saekernels.sae.entries import with_gradients

_SAMPLE = 64  # rows that the first guess looks at
_MARGIN = 0.95  # of a guess: what is above it are the candidates, some more than are wanted


def encode_batch_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None = None,
    *,
    n: int,
    pre_bias: Tensor | None = None,
    scale: Tensor | None = None,
    guess: float | None = None,
) -> CsrCodes:
    """The n largest of all positive pre-activations (x - pre_bias) @ W_enc.T + b_enc of a batch, whatever their rows.

    Exact: the candidates are the pre-activations above a threshold, and n of them or more hold the n largest of all;
    where there are fewer, the threshold falls. Ties at the n-th value go to the first rows, in a row to the first
    latents. Fewer than n come back where fewer are positive.

    Args:
        x: [T, d], float32, bfloat16 or float16.
        W_enc: [F, d]; x's dtype.
        b_enc: [F] or None.
        n: at least 1; k * T for k active latents a token (Bussmann et al. 2024).
        pre_bias: [d] or None, subtracted from x.
        scale: [F], x's dtype or float32, none below 0, or None: what is compared is a pre-activation times its latent's
            scale, such as the norm of its decoder row. Values are the pre-activations all the same; no gradient
            reaches the scale.
        guess: the least value (times its scale) that came back for a batch before. It changes the time that it takes,
            and nothing else.

    Returns:
        CsrCodes: values [nnz], indices [nnz] int32 ascending within a row, offsets [T+1] int64. Values are
        differentiable with respect to x, W_enc, b_enc and pre_bias.

    Raises:
        ValueError: n below 1, x that is not [T, d], a scale of another shape, or a guess that is not finite; and as
            `encode_threshold`.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n: got {n!r}, need an int of at least 1")
    if x.dim() != 2:
        raise ValueError(f"x: got shape {list(x.shape)}, need [T, d]")
    if guess is not None and not math.isfinite(guess):
        raise ValueError(f"guess: got {guess!r}, need a finite number or None")
    if scale is not None:
        _check.vector_beside("scale", scale, ("F", W_enc.shape[0]), x)
    with torch.no_grad():
        if guess is None:
            guess = _first_guess(x, W_enc, b_enc, n, pre_bias, scale)
        floor = _MARGIN * max(guess, 0.0)
        while True:
            found, scores = _above(x, W_enc, b_enc, pre_bias, scale, floor)
            if floor == 0 or int((~(scores <= floor)).sum()) >= n:
                break
            floor = floor / 2 if floor > 1e-3 else 0.0
        kept = _largest(found, scores, n)
    return kept._replace(values=with_gradients(kept, x, W_enc, b_enc, pre_bias))


def _above(
    x: Tensor, W_enc: Tensor, b_enc: Tensor | None, pre_bias: Tensor | None, scale: Tensor | None, floor: float
) -> tuple[CsrCodes, Tensor]:
    """Every entry whose score exceeds the floor, perhaps some more, and the scores [nnz]."""
    if scale is None:
        found = encode_threshold(x, W_enc, b_enc, floor, pre_bias=pre_bias)
        return found, found.values
    # A quotient and a product are rounded, and a value to x's dtype: a little lower, so that none is missed.
    scale = scale.to(torch.promote_types(scale.dtype, torch.float32))
    low = floor * (1 - 8 * torch.finfo(x.dtype).eps) / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    found = encode_threshold(x, W_enc, b_enc, low, pre_bias=pre_bias)
    return found, found.values * scale[found.indices.long()]


@torch.no_grad()
def _first_guess(
    x: Tensor, W_enc: Tensor, b_enc: Tensor | None, n: int, pre_bias: Tensor | None, scale: Tensor | None
) -> float:
    """About the n-th score of the batch, or less, from some of its rows; 0 for none."""
    if not len(x):
        return 0.0
    rows = x[torch.linspace(0, len(x) - 1, min(_SAMPLE, len(x)), device=x.device).long()]
    wanted = math.ceil(n * len(rows) / len(x))
    k = min(len(W_enc), math.ceil(2 * wanted / len(rows)))
    values, indices = encode_topk(rows, W_enc, b_enc, k=k, pre_bias=pre_bias)
    scores = (values if scale is None else values * scale[indices.long()]).flatten()
    guess = float(scores.topk(min(wanted, scores.numel())).values[-1])
    return guess if math.isfinite(guess) else 0.0


def _largest(found: CsrCodes, scores: Tensor, n: int) -> CsrCodes:
    """The n entries of the largest scores; what is not above 0 is none, and NaN is."""
    keep = ~(scores <= 0)
    if scores.numel() > n:
        least = scores.topk(n).values[-1]
        above = ~(scores <= least)
        tied = ((scores == least) & keep).nonzero()[:, 0]
        keep &= above
        keep[tied[: max(0, n - int(above.sum()))]] = True
    if bool(keep.all()):
        return found
    offsets = pad(keep.cumsum(0), (1, 0))[found.offsets]
    return CsrCodes(found.values[keep], found.indices[keep], offsets)
