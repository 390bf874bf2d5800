"""segment_outer: the gradient of a matrix of latents, each row the sum of value * a[row] over the latent's entries."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.codes.segments import PIECE, rows_in, segments
from saekernels.backends.triton.codes.weighted_rows import rows_of, sum_rows
from saekernels.backends.triton.launch import architecture, launch


class Entries(NamedTuple):
    """Codes by latent; kernels take it as one argument.

    Attributes:
        weights, rows: [nnz], each entry's value and row, in the order of `Segments`.
        starts, pieces: as there.
    """

    weights: Tensor
    rows: Tensor
    starts: Tensor
    pieces: Tensor


@triton.jit
def piece_kernel(  # type: ignore[no-untyped-def]
    of, a, owners, partial, F, PIECE: tl.constexpr, BD: tl.constexpr, ENTRIES: tl.constexpr, EVEN: tl.constexpr
):
    piece = tl.program_id(0).to(tl.int64)
    latent = tl.load(owners + piece)
    if latent < F:
        column = tl.program_id(1) * BD + tl.arange(0, BD)
        begin = tl.load(of.starts + latent) + (piece - tl.load(of.pieces + latent)) * PIECE
        end = tl.minimum(begin + PIECE, tl.load(of.starts + latent + 1))
        acc = sum_rows(of.weights, of.rows, begin, end, a, column, BD, ENTRIES, EVEN)
        tl.store(partial + piece * a.D + column, acc, mask=column < a.D)


@triton.jit
def segment_outer_kernel(  # type: ignore[no-untyped-def]
    of, a, partial, out, BD: tl.constexpr, ENTRIES: tl.constexpr, EVEN: tl.constexpr
):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    first = tl.load(of.pieces + latent)
    last = tl.load(of.pieces + latent + 1)
    begin = tl.load(of.starts + latent)
    end = tl.load(of.starts + latent + 1)
    if first == last:
        acc = sum_rows(of.weights, of.rows, begin, end, a, column, BD, ENTRIES, EVEN)
    else:
        acc = tl.zeros((BD,), tl.float32)
        for piece in range(first, last):
            acc += tl.load(partial + piece * a.D + column, mask=column < a.D, other=0.0)
    tl.store(out + latent * a.D + column, acc.to(out.dtype.element_ty), mask=column < a.D)


def segment_outer(values: Tensor, indices: Tensor, offsets: Tensor, a: Tensor, n_latents: int) -> Tensor:
    """[F, d]: row i sums values[e] * a[row of e] over the entries of latent i, in ascending e, in float32.

    Working memory: at most 32 bytes per entry and a float32 row of d per PIECE / 2 entries.
    """
    width, device = a.shape[1], a.device
    grouped = segments(indices, n_latents)
    out = torch.empty(n_latents, width, dtype=a.dtype, device=device)
    partial = torch.empty(grouped.owners.shape[0], width, dtype=torch.float32, device=device)
    config = configs.lookup("segment", architecture(device), a.dtype, width)
    # Brought into order once, not by every block of columns.
    of = Entries(values[grouped.order], rows_in(grouped.order, offsets), grouped.starts, grouped.pieces)
    shared: dict[str, Any] = {
        "of": of,
        "a": rows_of(a),
        "partial": partial,
        "BD": config.BN,
        "ENTRIES": config.BK,
        "EVEN": width % config.BN == 0,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    blocks = triton.cdiv(width, config.BN)
    piece_grid = (grouped.owners.shape[0], blocks)
    launch(piece_kernel, piece_grid, device, owners=grouped.owners, F=n_latents, PIECE=PIECE, **shared)
    launch(segment_outer_kernel, (n_latents, blocks), device, out=out, **shared)
    return out
