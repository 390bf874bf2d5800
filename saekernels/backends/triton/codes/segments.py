"""segments: the entries of codes grouped by latent, in their own order within a group, and long groups cut into pieces.

A latent that fires on every token would keep one program busy for as long as all others take. Groups of more than
PIECE entries are summed piece by piece, and the pieces' sums in order: no atomics, and the same bits every time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saekernels.backends import cuda

PIECE = 256


class Segments(NamedTuple):
    """Entries by latent.

    Attributes:
        order: [nnz] entry numbers, by latent, ascending within one.
        starts: [F + 1] int64: latent i owns order[starts[i]] .. order[starts[i + 1]].
        pieces: [F + 1] int64: latent i owns pieces[i] .. pieces[i + 1]; none unless it has more than PIECE entries.
        owners: [at least as many as pieces] int64: the latent of each; F past the last.
    """

    order: Tensor
    starts: Tensor
    pieces: Tensor
    owners: Tensor


def by_latent(indices: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """`order` and `starts` of entries with indices [nnz], each in [0, n_latents)."""
    if indices.device.type == "cuda" and cuda.available() is None:
        return cuda.group_by_latent(indices, n_latents)
    latents, order = torch.sort(indices, stable=True)
    bounds = torch.arange(n_latents + 1, dtype=indices.dtype, device=indices.device)
    return order, torch.searchsorted(latents, bounds)


def segments(indices: Tensor, n_latents: int) -> Segments:
    """Group entries by indices [nnz], each in [0, n_latents)."""
    order, starts = by_latent(indices, n_latents)
    counts = starts.diff()
    each = torch.where(counts > PIECE, (counts + PIECE - 1) // PIECE, 0)
    pieces = torch.cat([each.new_zeros(1), each.cumsum(0)])
    # A bound known without asking the device: pieces come from groups of more than PIECE, so two of them have as many.
    places = torch.arange(2 * indices.shape[0] // PIECE, device=indices.device)
    return Segments(order, starts, pieces, torch.searchsorted(pieces[1:], places, right=True))


def rows_in(order: Tensor, offsets: Tensor) -> Tensor:
    """The row of each entry of `order`: [nnz] int32."""
    return torch.searchsorted(offsets[1:], order.to(offsets.dtype), right=True, out_int32=True)
