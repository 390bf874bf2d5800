"""Total-order keys on the device: the layout of csrc/common/keys.h with the top bit flipped, so that int64 compares.

bits 63..32  the score as an int32 in the order of floats: NaN above +inf, -0.0 equal to +0.0
bits 31..1   0x7fffffff - index
bit  0       whether the value is the score's negative, which "abs" scores need
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

EMPTY = tl.constexpr(-(2**63))  # below every key


class Candidates(NamedTuple):
    """What rows found, in buffers of one size; kernels take it as one argument.

    Attributes:
        keys: [T, capacity] int64, contiguous, the first min(counts[t], capacity) of row t in any order.
        counts: [T] int32, which run on past the capacity.
        scores: [T, capacity] float32, of the candidates, where keys are of scores times a scale; else None.
    """

    keys: Tensor
    counts: Tensor
    capacity: int
    scores: Tensor | None = None


@triton.jit
def ordered(score):  # type: ignore[no-untyped-def]
    """float32 to an int32 whose order is that of scores."""
    bits = score.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(score != score, 0x7FFFFFFF, tl.where(score == 0, 0, key))


@triton.jit
def unordered(key):  # type: ignore[no-untyped-def]
    """The float32 of an ordered int32."""
    score = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(key == 0x7FFFFFFF, float("nan"), score)


@triton.jit
def pack(score, index, negative):  # type: ignore[no-untyped-def]
    """Key of (score float32, index int32, whether the value is the score's negative)."""
    low = ((0x7FFFFFFF - index).to(tl.int64) << 1) | negative.to(tl.int64)
    return (ordered(score).to(tl.int64) << 32) | low


@triton.jit
def score_of(key):  # type: ignore[no-untyped-def]
    """The score in a key."""
    return unordered((key >> 32).to(tl.int32))


@triton.jit
def value_of(key):  # type: ignore[no-untyped-def]
    """The value in a key: the score with its sign."""
    score = score_of(key)
    return tl.where((key & 1) != 0, -score, score)


@triton.jit
def index_of(key):  # type: ignore[no-untyped-def]
    """The index in a key, int32."""
    return (0x7FFFFFFF - ((key & 0xFFFFFFFF) >> 1)).to(tl.int32)


@triton.jit
def rank_of(keys, rank):  # type: ignore[no-untyped-def]
    """The rank-th largest (from 1) of a block of ordered int32 keys, which has at least that many: one bit a step."""
    # The sign first, for what is added afterwards then never overflows.
    found = tl.where(tl.sum((keys >= 0).to(tl.int32), 0) >= rank, 0, -2147483648)
    bit = tl.full((), 1073741824, tl.int32)
    for _ in range(31):
        enough = tl.sum((keys >= found + bit).to(tl.int32), 0) >= rank
        found = tl.where(enough, found + bit, found)
        bit = bit >> 1
    return found
