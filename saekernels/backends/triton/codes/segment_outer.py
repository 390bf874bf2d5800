"""segment_outer: the gradient of a matrix of latents, each row the sum of value * a[row] over the latent's entries."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.codes.segments import PIECE, rows_of, segments
from saekernels.backends.triton.launch import architecture, launch


@triton.jit
def sum_entries(  # type: ignore[no-untyped-def]
    begin,
    end,
    values,
    order,
    rows,
    a,
    column,
    D,
    stride_at,
    stride_ad,
    BD: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """[BD] float32: value * a[row] over order[begin:end], in order."""
    acc = tl.zeros((BD,), tl.float32)
    for start in range(begin, end, ENTRIES):
        for i in tl.static_range(ENTRIES):
            there = start + i < end
            entry = tl.load(order + start + i, mask=there, other=0).to(tl.int64)
            value = tl.load(values + entry, mask=there, other=0.0).to(tl.float32)
            row = tl.load(rows + entry, mask=there, other=0).to(tl.int64)
            source = a + row * stride_at + column * stride_ad
            acc += value * tl.load(source, mask=column < tl.where(there, D, 0), other=0.0).to(tl.float32)
    return acc


@triton.jit
def piece_kernel(  # type: ignore[no-untyped-def]
    values,
    order,
    starts,
    pieces,
    owners,
    rows,
    a,
    partial,
    F,
    D,
    stride_at,
    stride_ad,
    PIECE: tl.constexpr,
    BD: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    piece = tl.program_id(0).to(tl.int64)
    latent = tl.load(owners + piece)
    if latent < F:
        column = tl.program_id(1) * BD + tl.arange(0, BD)
        begin = tl.load(starts + latent) + (piece - tl.load(pieces + latent)) * PIECE
        end = tl.minimum(begin + PIECE, tl.load(starts + latent + 1))
        acc = sum_entries(begin, end, values, order, rows, a, column, D, stride_at, stride_ad, BD, ENTRIES)
        tl.store(partial + piece * D + column, acc, mask=column < D)


@triton.jit
def segment_outer_kernel(  # type: ignore[no-untyped-def]
    values,
    order,
    starts,
    pieces,
    rows,
    a,
    partial,
    out,
    D,
    stride_at,
    stride_ad,
    BD: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    first = tl.load(pieces + latent)
    last = tl.load(pieces + latent + 1)
    if first == last:
        begin = tl.load(starts + latent)
        end = tl.load(starts + latent + 1)
        acc = sum_entries(begin, end, values, order, rows, a, column, D, stride_at, stride_ad, BD, ENTRIES)
    else:
        acc = tl.zeros((BD,), tl.float32)
        for piece in range(first, last):
            acc += tl.load(partial + piece * D + column, mask=column < D, other=0.0)
    tl.store(out + latent * D + column, acc.to(out.dtype.element_ty), mask=column < D)


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
        "values": values.contiguous(),
        "order": grouped.order,
        "starts": grouped.starts,
        "pieces": grouped.pieces,
        "rows": rows_of(offsets, indices.shape[0]),
        "a": a,
        "partial": partial,
        "D": width,
        "stride_at": a.stride(0),
        "stride_ad": a.stride(1),
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
