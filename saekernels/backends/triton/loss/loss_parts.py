"""loss_parts: for each row and part of the vocabulary, what cross-entropies, KL and argmaxes are made of.

A program takes BM rows of both streams and TILES tiles of the vocabulary. Per row and stream it keeps the running
maximum, the sum of exponentials below it and the argmax, and for the KL the sum of e^(z_p - max_p) (z_p - z_q).
What few tiles need is done in those alone: masks in the vocabulary's last, a target's logit where a target is.
Parts do not depend on T, so rows are batch-invariant.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton.loss.logits import LOG2_E, both_logits, exp2, same, shift_of


class Parts(NamedTuple):
    """What is left of each stream's rows and part of the vocabulary; kernels take it as one argument.

    Attributes:
        sums: [parts, R, 5, T] float32: maximum and sum of h_p and of an h_q, and the KL's cross sum; sums are relative
            to 2^`shift_of` of the maximum.
        bests: [parts, R, 2, T] int32: argmax of either.
        target_logits: [R, 2, T] float32.
    """

    sums: Tensor
    bests: Tensor
    target_logits: Tensor


@triton.jit
def either(a, b):  # type: ignore[no-untyped-def]
    return a | b


@triton.jit
def tiles_with_a_target(target, part, BN: tl.constexpr, TILES: tl.constexpr):  # type: ignore[no-untyped-def]
    """int32: a bit for each tile of the part in which some row's target is."""
    tile = target // BN - part * TILES
    here = (target >= 0) & (tile >= 0) & (tile < TILES)
    return tl.reduce(tl.where(here, 1 << tl.where(here, tile, 0), 0), 0, either)


@triton.jit
def by_lane(z):  # type: ignore[no-untyped-def]
    """[M, N] as [M, N / 8, 4, 2], of which each lane of four that share a row of a product has [:, :, lane, :]."""
    return tl.reshape(z, (z.shape[0], z.shape[1] // 8, 4, 2))


@triton.jit
def columns_of(tile_n, TILE, SPECIAL):  # type: ignore[no-untyped-def]
    """[1, BN / 8, 4, 2]: the words of a tile, made where they are needed."""
    return same(tile_n, SPECIAL) * TILE.BN + by_lane(tl.arange(0, TILE.BN)[None, :])


@triton.jit
def spread(x):  # type: ignore[no-untyped-def]
    """[M, 4] beside blocks of [M, N / 8, 4, 2]."""
    return x[:, None, :, None]


@triton.jit
def lane_sum(x):  # type: ignore[no-untyped-def]
    """[M, 4]: each lane's own, of [M, N / 8, 4, 2]."""
    return tl.sum(tl.sum(x, 3), 1)


@triton.jit
def lane_max(x):  # type: ignore[no-untyped-def]
    """[M, 4]: each lane's own, of [M, N / 8, 4, 2]."""
    return tl.max(tl.max(x, 3), 1)


@triton.jit
def column_halves(z):  # type: ignore[no-untyped-def]
    """The left and the right half of the columns of [M, N / 8, 4, 2]."""
    apart = tl.reshape(z, (z.shape[0], 2, z.shape[1] // 2, 4, 2))
    return tl.split(tl.permute(apart, (0, 2, 3, 4, 1)))


@triton.jit
def pieces_of(z):  # type: ignore[no-untyped-def]
    """Pieces of 16 columns, of tiles of 64 or 128."""
    left, right = column_halves(z)
    pieces = column_halves(left) + column_halves(right)
    if z.shape[1] == 16:
        pieces = (
            column_halves(pieces[0]) + column_halves(pieces[1]) + column_halves(pieces[2]) + column_halves(pieces[3])
        )
    return pieces


@triton.jit
def first_best(pieces, number: tl.constexpr, first_column, V):  # type: ignore[no-untyped-def]
    """The largest of each row of a tile in pieces, and the first column that has it, counted from `first_column`.

    Each lane picks the first of its pieces that has its largest, so that one in `number` of its columns is compared.
    """
    tops = (lane_max(pieces[0]),)
    top = tops[0]
    for i in tl.static_range(1, number):
        own = lane_max(pieces[i])
        tops = tops + (own,)  # type: ignore[assignment]  # noqa: RUF005
        top = tl.maximum(top, own)
    found = pieces[number - 1]
    piece = tl.full(top.shape, number - 1, tl.int32)
    for i in tl.static_range(1, number):
        here = tops[number - 1 - i] == top
        found = tl.where(spread(here), pieces[number - 1 - i], found)
        piece = tl.where(here, number - 1 - i, piece)
    column = by_lane(tl.arange(0, 16)[None, :])
    within = tl.min(tl.min(tl.where(found == spread(top), column, V), 3), 1)
    best = tl.max(top, 1)
    column = tl.where(top == best[:, None], first_column + piece * 16 + within, V)
    return best, tl.min(column, 1)


@triton.jit
def fade_of(old, new):  # type: ignore[no-untyped-def]
    """What sums relative to the maximum `old` are multiplied by to be relative to `new`; 0 where there were none."""
    return tl.where(old == float("-inf"), 0.0, tl.exp2(shift_of(old) - shift_of(new)))


@triton.jit
def parts_kernel(of, targets, parts, softcap, TILES: tl.constexpr, TILE, SPECIAL):  # type: ignore[no-untyped-def]
    tiles_m = tl.cdiv(of.T, TILE.BM)
    tile_m = tl.program_id(0) % tiles_m
    stream = tl.program_id(0) // tiles_m
    part = tl.program_id(1)
    rows = tile_m * TILE.BM + tl.arange(0, TILE.BM)
    live = rows < of.T
    target = tl.load(targets + rows, mask=live, other=-1)
    target = tl.where((target >= 0) & (target < of.V), target, -1).to(tl.int32)
    with_target = tiles_with_a_target(target, part, TILE.BN, TILES)
    max_p = tl.full((TILE.BM,), float("-inf"), tl.float32)
    max_q = tl.full((TILE.BM,), float("-inf"), tl.float32)
    sum_p = tl.zeros((TILE.BM, 4), tl.float32)
    sum_q = tl.zeros((TILE.BM, 4), tl.float32)
    cross = tl.zeros((TILE.BM, 4), tl.float32)
    best_p = tl.zeros((TILE.BM,), tl.int32)
    best_q = tl.zeros((TILE.BM,), tl.int32)
    first = part * TILES
    for tile_n in range(first, tl.minimum(first + TILES, tl.cdiv(of.V, TILE.BN))):
        z_p, z_q = both_logits(of, stream, softcap, tile_m, tile_n, TILE, SPECIAL)
        z_p = by_lane(z_p)
        z_q = by_lane(z_q)
        if (with_target >> (tile_n - first)) & 1:
            # A target is in one tile of one part, so nobody else writes there.
            at_target = columns_of(tile_n, TILE, SPECIAL) == target[:, None, None, None]
            here = (target >= tile_n * TILE.BN) & (target < tile_n * TILE.BN + TILE.BN)
            place = parts.target_logits + stream.to(tl.int64) * 2 * of.T + rows
            tl.store(place, tl.sum(lane_sum(tl.where(at_target, z_p, 0.0)), 1), mask=here)
            tl.store(place + of.T, tl.sum(lane_sum(tl.where(at_target, z_q, 0.0)), 1), mask=here)
        if tile_n * TILE.BN + TILE.BN > of.V:
            inside = columns_of(tile_n, TILE, SPECIAL) < of.V
            z_p = tl.where(inside, z_p, float("-inf"))
            z_q = tl.where(inside, z_q, float("-inf"))
        pieces_p = pieces_of(z_p)
        pieces_q = pieces_of(z_q)
        top_p, first_p = first_best(pieces_p, TILE.BN // 16, tile_n * TILE.BN, of.V)
        top_q, first_q = first_best(pieces_q, TILE.BN // 16, tile_n * TILE.BN, of.V)
        best_p = tl.where(top_p > max_p, first_p, best_p)
        best_q = tl.where(top_q > max_q, first_q, best_q)
        new_p = tl.maximum(max_p, top_p)
        new_q = tl.maximum(max_q, top_q)
        shift_p = spread(shift_of(new_p)[:, None])
        shift_q = spread(shift_of(new_q)[:, None])
        fade_p = fade_of(max_p, new_p)[:, None]
        cross *= fade_p
        sum_p *= fade_p
        sum_q *= fade_of(max_q, new_q)[:, None]
        for i in tl.static_range(TILE.BN // 16):
            weight_p = exp2(tl.fma(pieces_p[i], LOG2_E, -shift_p), SPECIAL)
            weight_q = exp2(tl.fma(pieces_q[i], LOG2_E, -shift_q), SPECIAL)
            # p = 0 counts nothing, also where z_q is -inf.
            gap = tl.where(weight_p == 0, 0.0, pieces_p[i] - pieces_q[i])
            cross += lane_sum(weight_p * gap)
            sum_p += lane_sum(weight_p)
            sum_q += lane_sum(weight_q)
        max_p = new_p
        max_q = new_q
    block = part.to(tl.int64) * (tl.num_programs(0) // tiles_m) + stream
    place = parts.sums + block * 5 * of.T + rows
    tl.store(place, max_p, mask=live)
    tl.store(place + of.T, tl.sum(sum_p, 1), mask=live)
    tl.store(place + 2 * of.T, max_q, mask=live)
    tl.store(place + 3 * of.T, tl.sum(sum_q, 1), mask=live)
    tl.store(place + 4 * of.T, tl.sum(cross, 1), mask=live)
    bests = parts.bests + block * 2 * of.T + rows
    tl.store(bests, best_p, mask=live)
    tl.store(bests + of.T, best_q, mask=live)
