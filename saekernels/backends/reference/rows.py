"""Row-by-row linear maps: the same bits for a row whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of a working buffer: 16 MiB in float32.
BUFFER_ELEMENTS = 4 * 1024 * 1024


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are taken: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` so that a [chunk, width] buffer holds at most BUFFER_ELEMENTS, and at least one row."""
    step = max(1, BUFFER_ELEMENTS // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def linear_rows(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, d] (already in the accumulator's dtype) times W [F, d] transposed, plus bias [F]: [T, F].

    One matrix-vector product per row and tile: its shape, and so its order of summation, does not depend on T. The row
    is cloned because a BLAS may choose another path for another alignment.
    """
    out = x.new_empty(x.shape[0], W.shape[0])
    for tile in row_chunks(W.shape[0], W.shape[1]):
        weights = W[tile].to(x.dtype)
        for row in range(x.shape[0]):
            out[row, tile] = torch.mv(weights, x[row].clone())
    return out if bias is None else out.add_(bias.to(x.dtype))


def fixed_order_sum(terms: Tensor) -> Tensor:
    """Sum over the last dimension by halving: an order that depends on its length alone, on any device."""
    while terms.shape[-1] > 1:
        half = (terms.shape[-1] + 1) // 2
        low, high = terms[..., :half], terms[..., half:]
        terms = low + torch.nn.functional.pad(high, (0, half - high.shape[-1]))
    return terms[..., 0]
