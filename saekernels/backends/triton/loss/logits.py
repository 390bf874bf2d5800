"""logits: tiles of two streams' logits under one unembedding, which forward and backward share, and powers of two.

Each tile of W_U is fetched once for both streams. Exponentials are powers of two: e^(z - m) is 2^(z log2(e) - s) with
s = ceil(m log2(e)), one multiplication that adds and one instruction of the special functions. s being an integer,
rescaling by a difference of two of them rounds nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.launch import INTERPRETER, architecture

# float32 operands: three products of tensor cores come within a few units of float32's own rounding.
FLOAT32_PRODUCT = "tf32x3"
LOG2_E = tl.constexpr(1.4426950408889634)
# What Triton makes of exp2 scales its argument for results below 2^-126, at three instructions each: they may be 0.
EXP2 = "ex2.approx.ftz.f32 $0, $1;"
# A number of which the compiler doesn't know that it is the same in every tile: addresses of rows are then made anew
# for each, and no registers hold them while exponentials need them.
SAME = "mov.b32 $0, $1;"
RECIPROCAL = "rcp.approx.ftz.f32 $0, $1;"


class Streams(NamedTuple):
    """Streams [T, D] and [R, T, D], the unembedding [V, D], strides in elements; kernels take it as one argument."""

    h_p: Tensor
    h_q: Tensor
    W: Tensor
    bias: Tensor | None
    T: int
    V: int
    D: int
    stride_pt: int
    stride_pd: int
    stride_qr: int
    stride_qt: int
    stride_qd: int
    stride_wv: int
    stride_wd: int
    stride_bias: int


class Special(NamedTuple):
    """PTX of special functions, `tl.constexpr`; empty in the interpreter, which knows no assembly."""

    EXP2: Any
    RECIPROCAL: Any
    SAME: Any


def streams(h_p: Tensor, h_q: Tensor, W: Tensor, bias: Tensor | None) -> Streams:
    """Of h_p [T, D] and h_q [R, T, D]."""
    strides = (*h_p.stride(), *h_q.stride(), *W.stride(), 0 if bias is None else bias.stride(0))
    return Streams(h_p, h_q, W, bias, h_p.shape[0], *W.shape, *strides)


def tile_of_logits(h: Tensor, bias: Tensor | None) -> configs.Config:
    """The configuration for streams [T, D]; a bias and a depth that no tile divides need registers, so half the words.

    On the wide tiles a bias spills 8 bytes beside a softcap, a ragged depth 248.
    """
    config = configs.lookup("linear_ce_kl", architecture(h.device), h.dtype, h.shape[1])
    ragged = h.shape[1] % config.BK > 0
    narrow = (ragged or bias is not None) and config.BN > 64
    return config._replace(BN=config.BN // 2 if narrow else config.BN, BK=config.BK // 2 if ragged else config.BK)


def special(found: int) -> Special:
    """For an architecture."""
    return Special(*(tl.constexpr("" if found == INTERPRETER else text) for text in (EXP2, RECIPROCAL, SAME)))


@triton.jit
def exp2(u, SPECIAL):  # type: ignore[no-untyped-def]
    """2^u; 0 below 2^-126."""
    if SPECIAL.EXP2 != "":
        return tl.inline_asm_elementwise(SPECIAL.EXP2, "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1)
    return tl.exp2(u)


@triton.jit
def reciprocal(u, SPECIAL):  # type: ignore[no-untyped-def]
    """1 / u."""
    if SPECIAL.RECIPROCAL != "":
        return tl.inline_asm_elementwise(SPECIAL.RECIPROCAL, "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1)
    return 1.0 / u


@triton.jit
def same(x, SPECIAL):  # type: ignore[no-untyped-def]
    """x, an int32."""
    if SPECIAL.SAME != "":
        return tl.inline_asm_elementwise(SPECIAL.SAME, "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)
    return x


@triton.jit
def shift_of(top):  # type: ignore[no-untyped-def]
    """The exponent that a maximum is taken for: ceil(top log2(e)), 0 for -inf."""
    return tl.where(top == float("-inf"), 0.0, tl.ceil(top * LOG2_E))


@triton.jit
def both_products(of, stream, tile_m, tile_n, TILE):  # type: ignore[no-untyped-def]
    """Two [BM, BN] float32 tiles: rows of h_p and of one h_q [T, D] times the same rows of W [V, D].

    Beyond the last row and the last word they repeat it: addresses need no masks, which would need registers.
    """
    rows = tl.minimum(tile_m * TILE.BM + tl.arange(0, TILE.BM), of.T - 1).to(tl.int64)
    columns = tl.minimum(tile_n * TILE.BN + tl.arange(0, TILE.BN), of.V - 1).to(tl.int64)
    depth = tl.arange(0, TILE.BK)
    h_q = of.h_q + stream.to(tl.int64) * of.stride_qr
    p_tile = of.h_p + rows[:, None] * of.stride_pt + depth[None, :] * of.stride_pd
    q_tile = h_q + rows[:, None] * of.stride_qt + depth[None, :] * of.stride_qd
    W_tile = of.W + columns[None, :] * of.stride_wv + depth[:, None] * of.stride_wd
    z_p = tl.zeros((TILE.BM, TILE.BN), tl.float32)
    z_q = tl.zeros((TILE.BM, TILE.BN), tl.float32)
    for k in range(0, tl.maximum(tl.cdiv(of.D, TILE.BK), 1)):
        if TILE.EVEN:
            p = tl.load(p_tile)
            q = tl.load(q_tile)
            w = tl.load(W_tile)
        else:
            left = depth < of.D - k * TILE.BK
            p = tl.load(p_tile, mask=left[None, :], other=0.0)
            q = tl.load(q_tile, mask=left[None, :], other=0.0)
            w = tl.load(W_tile, mask=left[:, None], other=0.0)
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
def both_logits(of, stream, softcap, tile_m, tile_n, TILE, SPECIAL):  # type: ignore[no-untyped-def]
    """[BM, BN] float32 logits of h_p and of one h_q; outside the vocabulary whatever."""
    z_p, z_q = both_products(of, stream, same(tile_m, SPECIAL), tile_n, TILE)
    if of.bias is not None:
        columns = tile_n * TILE.BN + tl.arange(0, TILE.BN)
        shift = tl.load(of.bias + columns * of.stride_bias, mask=columns < of.V, other=0.0).to(tl.float32)[None, :]
        z_p += shift
        z_q += shift
    if softcap is not None:
        z_p = capped(z_p, softcap, SPECIAL)
        z_q = capped(z_q, softcap, SPECIAL)
    return z_p, z_q


@triton.jit
def capped(z, softcap, SPECIAL):  # type: ignore[no-untyped-def]
    """softcap tanh(z / softcap) = softcap - 2 softcap / (1 + e^(2 z / softcap)), right where the power overflows."""
    e = exp2(z * (2.0 * LOG2_E / softcap), SPECIAL)
    return softcap - (2.0 * softcap) * reciprocal(1.0 + e, SPECIAL)
