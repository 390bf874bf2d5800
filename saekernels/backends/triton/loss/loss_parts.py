"""loss_parts: for each row and part of the vocabulary, what cross-entropies, KL and argmaxes are made of.

A program takes BM rows of both streams and TILES tiles of the vocabulary; each tile of W_U is fetched once for both.
Per row and stream it keeps the running maximum, the sum of exponentials below it and the argmax, and for the KL the
sum of e^(z_p - max_p) (z_p - z_q). Parts do not depend on T, so rows are batch-invariant.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Streams(NamedTuple):
    """Two streams [T, D], the unembedding [V, D] and their strides in elements; kernels take it as one argument."""

    h_p: Tensor
    h_q: Tensor
    W: Tensor
    T: int
    V: int
    D: int
    stride_pt: int
    stride_pd: int
    stride_qt: int
    stride_qd: int
    stride_wv: int
    stride_wd: int


class Parts(NamedTuple):
    """What is left of each row and part of the vocabulary; kernels take it as one argument.

    Attributes:
        sums: [parts, 5, T] float32: maximum and sum of either stream, and the KL's cross sum.
        bests: [parts, 2, T] int32: argmax of either stream.
        target_logits: [2, T] float32.
    """

    sums: Tensor
    bests: Tensor
    target_logits: Tensor


@triton.jit
def both_products(of, tile_m, tile_n, TILE):  # type: ignore[no-untyped-def]
    """Two [BM, BN] float32 tiles: rows of h_p and of h_q [T, D] times the same rows of W [V, D]."""
    rows = tile_m * TILE.BM + tl.arange(0, TILE.BM)
    columns = tile_n * TILE.BN + tl.arange(0, TILE.BN)
    depth = tl.arange(0, TILE.BK)
    p_tile = of.h_p + rows.to(tl.int64)[:, None] * of.stride_pt + depth[None, :] * of.stride_pd
    q_tile = of.h_q + rows.to(tl.int64)[:, None] * of.stride_qt + depth[None, :] * of.stride_qd
    W_tile = of.W + columns.to(tl.int64)[None, :] * of.stride_wv + depth[:, None] * of.stride_wd
    z_p = tl.zeros((TILE.BM, TILE.BN), tl.float32)
    z_q = tl.zeros((TILE.BM, TILE.BN), tl.float32)
    for k in range(0, tl.cdiv(of.D, TILE.BK)):
        row_mask = (rows < of.T)[:, None]
        column_mask = (columns < of.V)[None, :]
        if not TILE.EVEN:
            row_mask = row_mask & (depth < of.D - k * TILE.BK)[None, :]
            column_mask = column_mask & (depth < of.D - k * TILE.BK)[:, None]
        p = tl.load(p_tile, mask=row_mask, other=0.0)
        q = tl.load(q_tile, mask=row_mask, other=0.0)
        w = tl.load(W_tile, mask=column_mask, other=0.0)
        if TILE.UPCAST:
            p = p.to(tl.float32)
            q = q.to(tl.float32)
            w = w.to(tl.float32)
        z_p = tl.dot(p, w, z_p, input_precision=TILE.PRODUCT, out_dtype=tl.float32)
        z_q = tl.dot(q, w, z_q, input_precision=TILE.PRODUCT, out_dtype=tl.float32)
        p_tile += of.stride_pd * TILE.BK
        q_tile += of.stride_qd * TILE.BK
        W_tile += of.stride_wd * TILE.BK
    return z_p, z_q


@triton.jit
def capped(z, softcap):  # type: ignore[no-untyped-def]
    """softcap * tanh(z / softcap); z itself without one."""
    if softcap is not None:
        # tanh(|u|) = (1 - e) / (1 + e) with e = exp(-2 |u|), which cannot overflow.
        e = tl.exp(-2.0 * tl.abs(z) / softcap)
        size = softcap * (1.0 - e) / (1.0 + e)
        z = tl.where(z < 0, -size, size)
    return z


@triton.jit
def first_best(z, columns, V):  # type: ignore[no-untyped-def]
    """The largest of each row, and the first column that has it."""
    top = tl.max(z, 1)
    return top, tl.min(tl.where(z == top[:, None], columns[None, :], V), 1)


@triton.jit
def weights(z, top, inside):  # type: ignore[no-untyped-def]
    """exp(z - top); nothing outside the vocabulary or where all is -inf; NaN stays."""
    weight = tl.where(inside & (top != float("-inf"))[:, None], tl.exp(z - top[:, None]), 0.0)
    return tl.where(inside & (z != z), z, weight)


@triton.jit
def parts_kernel(  # type: ignore[no-untyped-def]
    of, bias, stride_bias, targets, parts, softcap, TILES: tl.constexpr, TILE
):
    tile_m = tl.program_id(0)
    part = tl.program_id(1)
    rows = tile_m * TILE.BM + tl.arange(0, TILE.BM)
    live = rows < of.T
    target = tl.load(targets + rows, mask=live, other=-1)
    max_p = tl.full((TILE.BM,), float("-inf"), tl.float32)
    max_q = tl.full((TILE.BM,), float("-inf"), tl.float32)
    sum_p = tl.zeros((TILE.BM,), tl.float32)
    sum_q = tl.zeros((TILE.BM,), tl.float32)
    cross = tl.zeros((TILE.BM,), tl.float32)
    best_p = tl.zeros((TILE.BM,), tl.int32)
    best_q = tl.zeros((TILE.BM,), tl.int32)
    for tile_n in range(part * TILES, tl.minimum((part + 1) * TILES, tl.cdiv(of.V, TILE.BN))):
        z_p, z_q = both_products(of, tile_m, tile_n, TILE)
        columns = tile_n * TILE.BN + tl.arange(0, TILE.BN)
        if bias is not None:
            shift = tl.load(bias + columns * stride_bias, mask=columns < of.V, other=0.0).to(tl.float32)[None, :]
            z_p += shift
            z_q += shift
        z_p = capped(z_p, softcap)
        z_q = capped(z_q, softcap)
        # A target is in one tile of one part, so nobody else writes there.
        at_target = columns[None, :] == target[:, None]
        here = live & (target >= tile_n * TILE.BN) & (target < tile_n * TILE.BN + TILE.BN) & (target < of.V)
        tl.store(parts.target_logits + rows, tl.sum(tl.where(at_target, z_p, 0.0), 1), mask=here)
        tl.store(parts.target_logits + of.T + rows, tl.sum(tl.where(at_target, z_q, 0.0), 1), mask=here)

        inside = (columns < of.V)[None, :]
        top_p, first_p = first_best(tl.where(inside, z_p, float("-inf")), columns, of.V)
        top_q, first_q = first_best(tl.where(inside, z_q, float("-inf")), columns, of.V)
        best_p = tl.where(top_p > max_p, first_p, best_p)
        best_q = tl.where(top_q > max_q, first_q, best_q)
        new_p = tl.maximum(max_p, top_p)
        new_q = tl.maximum(max_q, top_q)
        # exp(-inf - -inf) is NaN where it should be nothing.
        fade_p = tl.where(new_p == float("-inf"), 0.0, tl.exp(max_p - new_p))
        fade_q = tl.where(new_q == float("-inf"), 0.0, tl.exp(max_q - new_q))
        weight_p = weights(z_p, new_p, inside)
        weight_q = weights(z_q, new_q, inside)
        gap = tl.where(weight_p == 0, 0.0, weight_p * (z_p - z_q))  # p = 0 counts nothing, also where z_q is -inf
        cross = cross * fade_p + tl.sum(gap, 1)
        sum_p = sum_p * fade_p + tl.sum(weight_p, 1)
        sum_q = sum_q * fade_q + tl.sum(weight_q, 1)
        max_p = new_p
        max_q = new_q
    place = part.to(tl.int64) * 5 * of.T + rows
    tl.store(parts.sums + place, max_p, mask=live)
    tl.store(parts.sums + place + of.T, sum_p, mask=live)
    tl.store(parts.sums + place + 2 * of.T, max_q, mask=live)
    tl.store(parts.sums + place + 3 * of.T, sum_q, mask=live)
    tl.store(parts.sums + place + 4 * of.T, cross, mask=live)
    place = part.to(tl.int64) * 2 * of.T + rows
    tl.store(parts.bests + place, best_p, mask=live)
    tl.store(parts.bests + place + of.T, best_q, mask=live)
