"""Sums of weighted rows of a matrix: what decode and segment_outer are made of.

A warp issues as many instructions for an entry's index, weight and address as for some columns of its row, so little
else may be in the loop: whole groups of entries have no masks, and a row's number is unsigned, which leaves its product
with a stride of 64 bits two instructions instead of five.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Rows(NamedTuple):
    """A matrix [*, D] of which rows are gathered, and its strides in elements; kernels take it as one argument."""

    matrix: Tensor
    D: int
    stride_row: int
    stride_column: int


def rows_of(matrix: Tensor) -> Rows:
    """The rows of a matrix [*, D]."""
    return Rows(matrix, matrix.shape[1], *matrix.stride())


@triton.jit
def place_of(rows, number, column):  # type: ignore[no-untyped-def]
    """Where columns of rows lie. number: int32, none negative."""
    return rows.matrix + number.to(tl.uint32).to(tl.int64) * rows.stride_row + column * rows.stride_column


@triton.jit
def _add(  # type: ignore[no-untyped-def]
    acc, weights, numbers, left, rows, column, ENTRIES: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr
):
    # Independent loads, so that several rows are under way; one sum, in order.
    for i in tl.static_range(ENTRIES):
        if WHOLE and EVEN:
            row = tl.load(place_of(rows, tl.load(numbers + i), column))
            weight = tl.load(weights + i)
        elif WHOLE:
            row = tl.load(place_of(rows, tl.load(numbers + i), column), mask=column < rows.D, other=0.0)
            weight = tl.load(weights + i)
        else:
            number = tl.load(numbers + i, mask=i < left, other=0)
            row = tl.load(place_of(rows, number, column), mask=column < tl.where(i < left, rows.D, 0), other=0.0)
            weight = tl.load(weights + i, mask=i < left, other=0.0)
        acc += weight.to(tl.float32) * row.to(tl.float32)
    return acc


@triton.jit
def sum_rows(  # type: ignore[no-untyped-def]
    weights, numbers, begin, end, rows, column, BD: tl.constexpr, ENTRIES: tl.constexpr, EVEN: tl.constexpr
):
    """[BD] float32: the sum of weights[e] * rows[numbers[e]] at the columns [BD], e from begin to end, in order.

    ENTRIES: entries whose rows are under way together; EVEN: whether all columns are there.
    """
    acc = tl.zeros((BD,), tl.float32)
    weights += begin
    numbers += begin
    count = (end - begin).to(tl.int32)
    whole = count - count % ENTRIES
    for start in range(0, whole, ENTRIES):
        acc = _add(acc, weights + start, numbers + start, ENTRIES, rows, column, ENTRIES, EVEN, True)
    if whole < count:
        acc = _add(acc, weights + whole, numbers + whole, count - whole, rows, column, ENTRIES, EVEN, False)
    return acc
