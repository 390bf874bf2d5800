"""loss_parts: for each row and part of the vocabulary, what cross-entropies, KL and argmaxes are made of.

A program takes BM rows of both streams and TILES tiles of the vocabulary; each tile of W_U is fetched once for both.
Per row and stream it keeps the running maximum, the sum of exponentials below it and the argmax, and for the KL the
sum of e^(z_p - max_p) (z_p - z_q). Parts do not depend on T, so rows are batch-invariant.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def both_products(  # type: ignore[no-untyped-def]
    h_p,
    h_q,
    W,
    tile_m,
    tile_n,
    T,
    V,
    D,
    stride_pt,
    stride_pd,
    stride_qt,
    stride_qd,
    stride_wv,
    stride_wd,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Two [BM, BN] float32 tiles: rows of h_p and of h_q [T, D] times the same rows of W [V, D]."""
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    p_tile = h_p + rows.to(tl.int64)[:, None] * stride_pt + depth[None, :] * stride_pd
    q_tile = h_q + rows.to(tl.int64)[:, None] * stride_qt + depth[None, :] * stride_qd
    W_tile = W + columns.to(tl.int64)[None, :] * stride_wv + depth[:, None] * stride_wd
    z_p = tl.zeros((BM, BN), tl.float32)
    z_q = tl.zeros((BM, BN), tl.float32)
    for k in range(0, tl.cdiv(D, BK)):
        row_mask = (rows < T)[:, None]
        column_mask = (columns < V)[None, :]
        if not EVEN:
            row_mask = row_mask & (depth < D - k * BK)[None, :]
            column_mask = column_mask & (depth < D - k * BK)[:, None]
        p = tl.load(p_tile, mask=row_mask, other=0.0)
        q = tl.load(q_tile, mask=row_mask, other=0.0)
        w = tl.load(W_tile, mask=column_mask, other=0.0)
        if UPCAST:
            p = p.to(tl.float32)
            q = q.to(tl.float32)
            w = w.to(tl.float32)
        z_p = tl.dot(p, w, z_p, input_precision=PRODUCT, out_dtype=tl.float32)
        z_q = tl.dot(q, w, z_q, input_precision=PRODUCT, out_dtype=tl.float32)
        p_tile += BK * stride_pd
        q_tile += BK * stride_qd
        W_tile += BK * stride_wd
    return z_p, z_q


@triton.jit
def capped(z, softcap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    """softcap * tanh(z / softcap)."""
    if CAPPED:
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
    h_p,
    h_q,
    W,
    bias,
    targets,
    sums,
    bests,
    target_logits,
    T,
    V,
    D,
    stride_pt,
    stride_pd,
    stride_qt,
    stride_qd,
    stride_wv,
    stride_wd,
    stride_bias,
    softcap,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    TILES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    tile_m = tl.program_id(0)
    part = tl.program_id(1)
    rows = tile_m * BM + tl.arange(0, BM)
    live = rows < T
    target = tl.load(targets + rows, mask=live, other=-1)
    max_p = tl.full((BM,), float("-inf"), tl.float32)
    max_q = tl.full((BM,), float("-inf"), tl.float32)
    sum_p = tl.zeros((BM,), tl.float32)
    sum_q = tl.zeros((BM,), tl.float32)
    cross = tl.zeros((BM,), tl.float32)
    best_p = tl.zeros((BM,), tl.int32)
    best_q = tl.zeros((BM,), tl.int32)
    for tile_n in range(part * TILES, tl.minimum((part + 1) * TILES, tl.cdiv(V, BN))):
        z_p, z_q = both_products(
            h_p, h_q, W, tile_m, tile_n, T, V, D, stride_pt, stride_pd, stride_qt, stride_qd, stride_wv, stride_wd,
            BM, BN, BK, EVEN, PRODUCT, UPCAST,
        )  # fmt: skip
        columns = tile_n * BN + tl.arange(0, BN)
        if BIASED:
            shift = tl.load(bias + columns * stride_bias, mask=columns < V, other=0.0).to(tl.float32)[None, :]
            z_p += shift
            z_q += shift
        z_p = capped(z_p, softcap, CAPPED)
        z_q = capped(z_q, softcap, CAPPED)
        # A target is in one tile of one part, so nobody else writes there.
        at_target = columns[None, :] == target[:, None]
        here = live & (target >= tile_n * BN) & (target < tile_n * BN + BN) & (target < V)
        tl.store(target_logits + rows, tl.sum(tl.where(at_target, z_p, 0.0), 1), mask=here)
        tl.store(target_logits + T + rows, tl.sum(tl.where(at_target, z_q, 0.0), 1), mask=here)

        inside = (columns < V)[None, :]
        top_p, first_p = first_best(tl.where(inside, z_p, float("-inf")), columns, V)
        top_q, first_q = first_best(tl.where(inside, z_q, float("-inf")), columns, V)
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
    place = part.to(tl.int64) * 5 * T + rows
    tl.store(sums + place, max_p, mask=live)
    tl.store(sums + place + T, sum_p, mask=live)
    tl.store(sums + place + 2 * T, max_q, mask=live)
    tl.store(sums + place + 3 * T, sum_q, mask=live)
    tl.store(sums + place + 4 * T, cross, mask=live)
    place = part.to(tl.int64) * 2 * T + rows
    tl.store(bests + place, best_p, mask=live)
    tl.store(bests + place + T, best_q, mask=live)
