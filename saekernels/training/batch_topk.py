"""BatchTopK's codes: the largest pre-activations of a whole batch, without a [tokens, latents] matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from saekernels.ops import encode_threshold, encode_topk
from saekernels.ops.encode_threshold import CsrCodes

_SAMPLE = 64  # rows that the first guess looks at
_MARGIN = 0.95  # of a guess: what is above it are the candidates, some more than are wanted


def encode_batch_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None = None,
    *,
    n: int,
    pre_bias: Tensor | None = None,
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
        guess: the least value that came back for a batch before. It changes the time that it takes, and nothing else.

    Returns:
        CsrCodes: values [nnz], indices [nnz] int32 ascending within a row, offsets [T+1] int64. Values are
        differentiable with respect to x, W_enc, b_enc and pre_bias.

    Raises:
        ValueError: n below 1, x that is not [T, d], or a guess that is not finite; and as `encode_threshold`.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n: got {n!r}, need an int of at least 1")
    if x.dim() != 2:
        raise ValueError(f"x: got shape {list(x.shape)}, need [T, d]")
    if guess is not None and not math.isfinite(guess):
        raise ValueError(f"guess: got {guess!r}, need a finite number or None")
    threshold = _MARGIN * max(_first_guess(x, W_enc, b_enc, n, pre_bias) if guess is None else guess, 0.0)
    while True:
        found = encode_threshold(x, W_enc, b_enc, threshold, pre_bias=pre_bias)
        if found.values.numel() >= n or threshold == 0:
            return _largest(found, n)
        threshold = threshold / 2 if threshold > 1e-3 else 0.0


@torch.no_grad()
def _first_guess(x: Tensor, W_enc: Tensor, b_enc: Tensor | None, n: int, pre_bias: Tensor | None) -> float:
    """About the n-th value of the batch, from some of its rows; 0 for none."""
    if not len(x):
        return 0.0
    rows = x[torch.linspace(0, len(x) - 1, min(_SAMPLE, len(x)), device=x.device).long()]
    wanted = math.ceil(n * len(rows) / len(x))
    k = min(len(W_enc), math.ceil(2 * wanted / len(rows)))
    values = encode_topk(rows, W_enc, b_enc, k=k, pre_bias=pre_bias).values.flatten()
    return float(values.topk(min(wanted, values.numel())).values[-1])


def _largest(found: CsrCodes, n: int) -> CsrCodes:
    values, indices, offsets = found
    if values.numel() <= n:
        return found
    with torch.no_grad():
        least = values.topk(n).values[-1]
        keep = values > least
        tied = (values == least).nonzero()[:, 0]
        keep[tied[: n - int(keep.sum())]] = True
        offsets = pad(keep.cumsum(0), (1, 0))[offsets]
    return CsrCodes(values[keep], indices[keep], offsets)
