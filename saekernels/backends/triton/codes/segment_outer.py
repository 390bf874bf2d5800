"""segment_outer: the gradient of a matrix of latents, each row the sum of value * a[row] over the latent's entries."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.codes.segments import PIECE, rows_of, segments
from saekernels.backends.triton.launch import architecture, launch


class Entries(NamedTuple):
    """The entries of codes by latent, and a [T, D], whose rows are summed; kernels take it as one argument.

    Attributes:
        weights, rows: [nnz], each entry's value and row.
        order, starts, pieces: as in `Segments`.
    """

    weights: Tensor
    rows: Tensor
    order: Tensor
    starts: Tensor
    pieces: Tensor
    a: Tensor
    D: int
    stride_at: int
    stride_ad: int


@triton.jit
def sum_entries(begin, end, of, column, BD: tl.constexpr, ENTRIES: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BD] float32: value * a[row] over order[begin:end], in order."""
    acc = tl.zeros((BD,), tl.float32)
    for start in range(begin, end, ENTRIES):
        for i in tl.static_range(ENTRIES):
            there = start + i < end
            entry = tl.load(of.order + start + i, mask=there, other=0).to(tl.int64)
            value = tl.load(of.weights + entry, mask=there, other=0.0).to(tl.float32)
            row = tl.load(of.rows + entry, mask=there, other=0).to(tl.int64)
            source = of.a + row * of.stride_at + column * of.stride_ad
            acc += value * tl.load(source, mask=column < tl.where(there, of.D, 0), other=0.0).to(tl.float32)
    return acc


@triton.jit
def piece_kernel(  # type: ignore[no-untyped-def]
    of, owners, partial, F, PIECE: tl.constexpr, BD: tl.constexpr, ENTRIES: tl.constexpr
):
    piece = tl.program_id(0).to(tl.int64)
    latent = tl.load(owners + piece)
    if latent < F:
        column = tl.program_id(1) * BD + tl.arange(0, BD)
        begin = tl.load(of.starts + latent) + (piece - tl.load(of.pieces + latent)) * PIECE
        end = tl.minimum(begin + PIECE, tl.load(of.starts + latent + 1))
        acc = sum_entries(begin, end, of, column, BD, ENTRIES)
        tl.store(partial + piece * of.D + column, acc, mask=column < of.D)


@triton.jit
def segment_outer_kernel(of, partial, out, BD: tl.constexpr, ENTRIES: tl.constexpr):  # type: ignore[no-untyped-def]
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    first = tl.load(of.pieces + latent)
    last = tl.load(of.pieces + latent + 1)
    if first == last:
        begin = tl.load(of.starts + latent)
        end = tl.load(of.starts + latent + 1)
        acc = sum_entries(begin, end, of, column, BD, ENTRIES)
    else:
        acc = tl.zeros((BD,), tl.float32)
        for piece in range(first, last):
            acc += tl.load(partial + piece * of.D + column, mask=column < of.D, other=0.0)
    tl.store(out + latent * of.D + column, acc.to(out.dtype.element_ty), mask=column < of.D)


def segment_outer(values: Tensor, indices: Tensor, offsets: Tensor, a: Tensor, n_latents: int) -> Tensor:
    """[F, d]: row i sums values[e] * a[row of e] over the entries of latent i, in ascending e, in float32.

    Working memory: 16 bytes per entry and a float32 row of d per PIECE / 2 entries.
    """
    width, device = a.shape[1], a.device
    grouped = segments(indices, n_latents)
    out = torch.empty(n_latents, width, dtype=a.dtype, device=device)
    partial = torch.empty(grouped.owners.shape[0], width, dtype=torch.float32, device=device)
    config = configs.lookup("segment", architecture(device), a.dtype, width)
    shared: dict[str, Any] = {
        "of": Entries(
            values.contiguous(), rows_of(offsets, indices.shape[0]), *grouped[:3], a, width, a.stride(0), a.stride(1)
        ),
        "partial": partial,
        "BD": config.BN,
        "ENTRIES": config.BK,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    blocks = triton.cdiv(width, config.BN)
    piece_grid = (grouped.owners.shape[0], blocks)
    launch(piece_kernel, piece_grid, device, owners=grouped.owners, F=n_latents, PIECE=PIECE, **shared)
    launch(segment_outer_kernel, (n_latents, blocks), device, out=out, **shared)
    return out
