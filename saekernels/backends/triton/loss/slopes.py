"""slopes: the gradients of logits, a slab of the vocabulary at a time, from the losses that the forward pass left.

With p, q the two distributions and g the gradients of the losses: dz_p = g_p (p - [target]) + g_kl p (log p - log q -
KL) and dz_q = g_q (q - [target]) + g_kl (q - p), times 1 - (z / softcap)^2. log sum exp is cross-entropy + the target's
logit. `rows_kernel` makes of each row what its logits have in common, so that a logit costs one power of two.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton.loss.logits import LOG2_E, both_logits, capped, exp2, shift_of


class Losses(NamedTuple):
    """Losses [T] and their gradients [T], contiguous float32; kernels take it as one argument."""

    ce_p: Tensor
    ce_q: Tensor
    kl: Tensor
    grad_ce_p: Tensor
    grad_ce_q: Tensor
    grad_kl: Tensor


@triton.jit
def logits_of_words(of, h, stride_d, words, softcap, BV: tl.constexpr, BD: tl.constexpr, SPECIAL):  # type: ignore[no-untyped-def]
    """[BV] float32: one row's logits of some words; -inf outside the vocabulary."""
    inside = (words >= 0) & (words < of.V)
    z = tl.zeros((BV,), tl.float32)
    for start in range(0, of.D, BD):
        depth = start + tl.arange(0, BD)
        x = tl.load(h + depth * stride_d, mask=depth < of.D, other=0.0).to(tl.float32)
        place = of.W + words.to(tl.int64)[:, None] * of.stride_wv + depth[None, :] * of.stride_wd
        w = tl.load(place, mask=inside[:, None] & (depth < of.D)[None, :], other=0.0).to(tl.float32)
        z += tl.sum(x[None, :] * w, 1)
    if of.bias is not None:
        z += tl.load(of.bias + words * of.stride_bias, mask=inside, other=0.0).to(tl.float32)
    if softcap is not None:
        z = capped(z, softcap, SPECIAL)
    return tl.where(inside, z, float("-inf"))


@triton.jit
def log_sum_exp(of, h, stride_d, loss, target, softcap, BV: tl.constexpr, BD: tl.constexpr, SPECIAL):  # type: ignore[no-untyped-def]
    """Of one row, from its cross-entropy; summed anew where that is infinite, for a target that cannot be."""
    first = tl.arange(0, BV) == 0
    z = logits_of_words(of, h, stride_d, tl.where(first, target, -1), softcap, BV, BD, SPECIAL)
    found = loss + tl.sum(tl.where(first, z, 0.0), 0)
    if loss == float("inf"):
        top = tl.full((), float("-inf"), tl.float32)
        total = tl.zeros((), tl.float32)
        for start in range(0, of.V, BV):
            z = logits_of_words(of, h, stride_d, start + tl.arange(0, BV), softcap, BV, BD, SPECIAL)
            new = tl.maximum(top, tl.max(z, 0))
            base = tl.where(new == float("-inf"), 0.0, new)
            total = total * tl.exp(top - base) + tl.sum(tl.exp(z - base), 0)
            top = new
        found = top + tl.log(total)
    return found


@triton.jit
def rows_kernel(  # type: ignore[no-untyped-def]
    of, targets, losses, rows, softcap, ignore_index, BV: tl.constexpr, BD: tl.constexpr, SPECIAL
):
    """[7, T]: shifts of both streams, what p, p (z_p - z_q), q and -p are multiplied by, gradients at the target."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    counted = target != ignore_index
    at = tl.where(counted, target, 0).to(tl.int32)
    h_p = of.h_p + row * of.stride_pt
    h_q = of.h_q + row * of.stride_qt
    lse_p = log_sum_exp(of, h_p, of.stride_pd, tl.load(losses.ce_p + row), at, softcap, BV, BD, SPECIAL)
    lse_q = log_sum_exp(of, h_q, of.stride_qd, tl.load(losses.ce_q + row), at, softcap, BV, BD, SPECIAL)
    g_p = tl.load(losses.grad_ce_p + row)
    g_q = tl.load(losses.grad_ce_q + row)
    g_kl = tl.load(losses.grad_kl + row)
    # p = scale_p * 2^(z_p log2(e) - shift_p).
    shift_p = shift_of(lse_p)
    shift_q = shift_of(lse_q)
    scale_p = tl.exp2(-tl.fma(lse_p, LOG2_E, -shift_p))
    scale_q = tl.exp2(-tl.fma(lse_q, LOG2_E, -shift_q))
    of_p = scale_p * (g_p - g_kl * (tl.load(losses.kl + row) + (lse_p - lse_q)))
    out = rows + row
    # 2^-inf is 0, whatever an ignored row's logits are.
    tl.store(out, tl.where(counted, shift_p, float("inf")))
    tl.store(out + of.T, tl.where(counted, shift_q, float("inf")))
    tl.store(out + 2 * of.T, tl.where(counted, of_p, 0.0))
    tl.store(out + 3 * of.T, tl.where(counted, scale_p * g_kl, 0.0))
    tl.store(out + 4 * of.T, tl.where(counted, scale_q * (g_q + g_kl), 0.0))
    tl.store(out + 5 * of.T, tl.where(counted, g_p, 0.0))
    tl.store(out + 6 * of.T, tl.where(counted, g_q, 0.0))


@triton.jit
def slopes_kernel(of, targets, rows, slab, bias_sums, softcap, first_word, WORDS, TILE, SPECIAL):  # type: ignore[no-untyped-def]
    """slab [2, T, WORDS]: dz of both streams, words from `first_word` on; bias_sums [row tiles, WORDS]: their sums."""
    tile_m = tl.program_id(0)
    tile_n = first_word // TILE.BN + tl.program_id(1)
    z_p, z_q = both_logits(of, tl.full((), 0, tl.int32), softcap, tile_m, tile_n, TILE, SPECIAL)
    row = tile_m * TILE.BM + tl.arange(0, TILE.BM)
    live = row < of.T
    word = tile_n * TILE.BN + tl.arange(0, TILE.BN)
    own = rows + row
    weight_p = exp2(tl.fma(z_p, LOG2_E, -tl.load(own, mask=live, other=float("inf"))[:, None]), SPECIAL)
    weight_q = exp2(tl.fma(z_q, LOG2_E, -tl.load(own + of.T, mask=live, other=float("inf"))[:, None]), SPECIAL)
    of_p = tl.load(own + 2 * of.T, mask=live, other=0.0)[:, None]
    of_gap = tl.load(own + 3 * of.T, mask=live, other=0.0)[:, None]
    of_q = tl.load(own + 4 * of.T, mask=live, other=0.0)[:, None]
    gap = tl.where(weight_p == 0, 0.0, z_p - z_q)  # p = 0 counts nothing, also where z_q is -inf
    d_p = weight_p * tl.fma(of_gap, gap, of_p)
    d_q = weight_q * of_q - weight_p * of_gap
    target = tl.load(targets + row, mask=live, other=-1)
    here = (target >= tile_n * TILE.BN) & (target < tile_n * TILE.BN + TILE.BN)
    if tl.max(here.to(tl.int32), 0) > 0:
        at_target = word[None, :] == target.to(tl.int32)[:, None]
        d_p -= tl.where(at_target, tl.load(own + 5 * of.T, mask=live, other=0.0)[:, None], 0.0)
        d_q -= tl.where(at_target, tl.load(own + 6 * of.T, mask=live, other=0.0)[:, None], 0.0)
    if softcap is not None:
        d_p *= 1.0 - (z_p / softcap) * (z_p / softcap)
        d_q *= 1.0 - (z_q / softcap) * (z_q / softcap)
    column = word - first_word
    if bias_sums is not None:
        total = tl.sum(tl.where(live[:, None], d_p + d_q, 0.0), 0)
        tl.store(bias_sums + tile_m * WORDS + column, total, mask=word < of.V)
    place = slab + row.to(tl.int64)[:, None] * WORDS + column[None, :]
    inside = live[:, None] & (word < of.V)[None, :]
    tl.store(place, d_p.to(slab.dtype.element_ty), mask=inside)
    rows = tl.zeros((), tl.int64) + of.T  # which is no tensor where it is 1
    tl.store(place + rows * WORDS, d_q.to(slab.dtype.element_ty), mask=inside)
