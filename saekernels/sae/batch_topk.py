"""BatchTopK's codes: the largest pre-activations of a whole batch, without a [tokens, latents] matrix."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from saekernels.ops import _check, encode_threshold, encode_topk
from saekernels.ops.encode_threshold import CsrCodes
from saekernels.sae.entries import positive, with_gradients

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
            reaches the scale. A negative one is refused on every device; times NaN a score is NaN, which ranks above
            all others.
        guess: the least value (times its scale) that came back for a batch before. It changes the time that it takes,
            and nothing else.

    Returns:
        CsrCodes: values [nnz], indices [nnz] int32 ascending within a row, offsets [T+1] int64. Values are
        differentiable with respect to x, W_enc, b_enc and pre_bias.

    Raises:
        TypeError, ValueError: n below 1, x that is not [T, d], a scale of another shape or below 0, or a guess that is
            not finite; and as `encode_threshold`.
    """
    return batch_codes(Encoder(x, W_enc, b_enc, pre_bias, scale), n, guess, Alone())


class Encoder(NamedTuple):
    """The arguments of `encode_batch_topk` that say what a score is."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor | None
    pre_bias: Tensor | None
    scale: Tensor | None


class Alone:
    """What the search asks of all rows of the batch, where they are those of this process."""

    def rows(self, of: Encoder, n: int, refusal: Exception | None) -> int:
        """How many there are. Raises what speaks against this process's arguments, or another's."""
        if refusal is not None:
            raise refusal
        return len(of.x)

    def least(self, guess: float | None) -> float:
        """The lowest guess; 0 for none."""
        return guess or 0.0

    def total(self, count: int) -> int:
        """The sum of counts."""
        return count

    def cut(self, scores: Tensor, n: int) -> tuple[Tensor, int] | None:
        """The n-th largest score, and how many of mine that equal it are kept, the first ones; None to keep all."""
        if scores.numel() <= n:
            return None
        least = scores.topk(n).values[-1]
        return least, n - int(above(scores, least).sum())


def above(scores: Tensor, least: Tensor) -> Tensor:
    """Which scores rank above another; NaN ranks above everything else."""
    return (scores > least) | (scores.isnan() & ~least.isnan())


def equal(scores: Tensor, least: Tensor) -> Tensor:
    """Which scores rank as high as another."""
    return (scores == least) | (scores.isnan() & least.isnan())


def batch_codes(of: Encoder, n: int, guess: float | None, batch: Alone) -> CsrCodes:
    """The codes of this process's rows among the n largest of the batch; see `encode_batch_topk`."""
    refusal: Exception | None = None
    try:
        _check_arguments(of, n, guess)
    except (TypeError, ValueError, NotImplementedError) as error:
        refusal = error
    with torch.no_grad():
        rows = batch.rows(of, n, refusal)
        if of.scale is not None:
            of = of._replace(scale=of.scale.to(torch.promote_types(of.scale.dtype, torch.float32)))
        if guess is None and len(of.x):
            guess = _first_guess(of, n * len(of.x) / rows)
        floor = _MARGIN * max(batch.least(guess if len(of.x) else None), 0.0)
        while True:
            found, scores = _above(of, floor)
            if floor == 0 or batch.total(int((~(scores <= floor)).sum())) >= n:
                break
            floor = floor / 2 if floor > 1e-3 else 0.0
        kept = _largest(found, scores, batch.cut(scores, n))
    return kept._replace(values=with_gradients(kept, of.x, of.W_enc, of.b_enc, of.pre_bias))


def _check_arguments(of: Encoder, n: object, guess: object) -> None:
    """TypeError or ValueError for what no search can begin with."""
    whole = _check.integer(n)
    if whole is None or whole < 1:
        raise ValueError(f"n: got {n!r}, need an int of at least 1")
    if guess is not None and not _finite(guess):
        raise ValueError(f"guess: got {guess!r}, need a finite number or None")
    _check.tensor("x", of.x)
    _check.tensor("W_enc", of.W_enc)
    _check.tensors(**of._asdict())
    _check.in_one_place(**of._asdict())
    if of.x.dim() != 2:
        raise ValueError(f"x: got shape {list(of.x.shape)}, need [T, d]")
    _check.encoder(of.x, of.W_enc, of.b_enc, of.pre_bias, "exact")
    if of.scale is not None:
        _check.vector_beside("scale", of.scale, ("F", of.W_enc.shape[0]), of.x)
        _check.none_below_zero("scale", of.scale)


def _finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        return False


def _above(of: Encoder, floor: float) -> tuple[CsrCodes, Tensor]:
    """Every entry whose score exceeds the floor, perhaps some more, and the scores [nnz]."""
    x, W_enc, b_enc, pre_bias, scale = of
    # Values are rounded to x's dtype: a little lower, so that none is missed.
    low = floor * (1 - 2 * torch.finfo(x.dtype).eps)
    at_least = None if scale is None else positive(scale)
    found = encode_threshold(x, W_enc, b_enc, low, pre_bias=pre_bias, scale=at_least)
    return found, found.values if scale is None else found.values * scale[found.indices.long()]


@torch.no_grad()
def _first_guess(of: Encoder, n: float) -> float:
    """About the n-th score of these rows, or less, from some of them."""
    x, W_enc, b_enc, pre_bias, scale = of
    rows = x[torch.linspace(0, len(x) - 1, min(_SAMPLE, len(x)), device=x.device).long()]
    wanted = math.ceil(n * len(rows) / len(x))
    k = min(len(W_enc), math.ceil(2 * wanted / len(rows)))
    at_least = None if scale is None else positive(scale)
    values, indices = encode_topk(rows, W_enc, b_enc, k=k, pre_bias=pre_bias, scale=at_least)
    scores = (values if scale is None else values * scale[indices.long()]).flatten()
    guess = float(scores.topk(min(wanted, scores.numel())).values[-1])
    return guess if math.isfinite(guess) else 0.0


def _largest(found: CsrCodes, scores: Tensor, cut: tuple[Tensor, int] | None) -> CsrCodes:
    """The entries whose scores are above a cut, and the first so many that equal it; none at or below 0, but NaN."""
    keep = ~(scores <= 0)
    if cut is not None:
        least, ties = cut
        tied = (equal(scores, least) & keep).nonzero()[:, 0]
        keep &= above(scores, least)
        keep[tied[: max(0, ties)]] = True
    if bool(keep.all()):
        return found
    offsets = pad(keep.cumsum(0), (1, 0))[found.offsets]
    return CsrCodes(found.values[keep], found.indices[keep], offsets)
