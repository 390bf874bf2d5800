"""warpgroups: wgmma, the products of four warps, whose factors lie in shared memory as descriptors say.

Each warp takes its 16 rows of A and all of B, and knows with its own wait that it has read them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ptx.lanes import WARP, Lanes, Operands, Words
from ptx.memory import Bytes, Fault, Ints, swizzled
from ptx.parse import several
from ptx.tensor_cores import DEPTHS, numbers, words_of

SHAPE = re.compile(r"m64n(\d+)k(\d+)")
# By their code in a descriptor; 0 is none, which compilers do not choose.
SWIZZLES = (0, 128, 64, 32)


class Matrix(NamedTuple):
    """What descriptors say, [warps] each: start, and the strides of two dimensions, in bytes; the swizzle of all."""

    start: Ints
    leading: Ints
    stride: Ints
    swizzle: int


def wgmma(state: Lanes, words: Words, operands: Operands) -> None:
    """fence, mma_async, commit_group and wait_group."""
    warps = np.flatnonzero(state.whole_warps())
    products, on = state.products, np.isin(np.arange(state.lanes // WARP), warps)
    if words[1] == "fence":
        products.fences[on] += 1
    elif words[1] == "commit_group":
        products.committed[on] += 1
    elif words[1] == "wait_group":
        done = np.where(on, products.committed - int(operands[0], 0), 0)
        products.finish(done)
        state.shared.finish(done)
    else:
        _multiply(state, words, operands, warps)


def _multiply(state: Lanes, words: Words, operands: Operands, warps: Ints) -> None:
    """mma_async: sums of float32, which are exact here but for the last rounding."""
    kind, shape = words[-1], SHAPE.fullmatch(words[4])
    if shape is None or words[-3] != "f32" or words[-2] != kind or int(shape[2]) != DEPTHS.get(kind):
        raise Fault("a product that is not known here")
    columns, (sign_a, sign_b, *turned) = int(shape[1]), (int(operand) for operand in operands[4:])
    turned_a, turned_b = turned if len(turned) == 2 else (0, *turned, 0)[:2]
    first = 16 * (state.order.own[warps] % 4)
    if operands[1].startswith("{"):
        a = words_of(state, operands[1], 16)[warps]
    else:
        a = _factor(state, operands[1], warps, first, 16, turned_a)
    b = _factor(state, operands[2], warps, np.zeros_like(first), columns, turned_b)
    results = several(operands[0])
    for register in (*results, *(several(operands[1]) if operands[1].startswith("{") else ())):
        state.products.begin(register, warps)
    sums = sign_a * sign_b * numbers(a, kind) @ numbers(b, kind).transpose(0, 2, 1)
    _add(state, results, warps, sums, operands[3])


def _add(state: Lanes, results: list[str], warps: Ints, sums: np.ndarray, scale: str) -> None:  # type: ignore[type-arg]
    """Sums [warps, 16, columns] to what registers hold, or instead of it."""
    lanes = (warps[:, None] * WARP + np.arange(WARP)).reshape(-1)
    lane, at_warp = lanes % WARP, np.repeat(np.arange(len(warps)), WARP)
    added = state.read(scale, np.bool_)[lanes]
    for at, register in enumerate(results):
        found = sums[at_warp, lane // 4 + 8 * (at // 2 % 2), 8 * (at // 4) + 2 * (lane % 4) + at % 2]
        before = state.registers.get(register)
        if before is None:
            if added.any():
                raise Fault(f"{register} is added to before it is written")
            before = np.zeros(state.lanes, np.uint32)
        made = before.copy()
        held = before[lanes].view(np.float32)
        made[lanes] = (found + np.where(added, held, np.float32(0))).astype(np.float32).view(np.uint32)
        state.registers[register] = made


def _factor(state: Lanes, operand: str, warps: Ints, first: Ints, rows: int, turned: int) -> Bytes:
    """[warps, rows, 32]: rows from `first` of each warp; turned: two bytes of a row of 16 lie in another place each."""
    bits = state.read(operand, np.uint64)[warps * WARP].astype(np.int64)
    matrix = _matrix(bits)
    group = state.products.committed[warps]
    row = first[:, None] + np.arange(rows)
    if turned:
        return _turned(state, matrix, warps, row, group)
    lines = matrix.start[:, None] + row // 8 * matrix.stride[:, None] + row % 8 * matrix.swizzle
    addresses = swizzled(lines[:, :, None] + 16 * np.arange(2), matrix.swizzle)
    found = state.shared.feed(warps, addresses.reshape(len(warps), -1), group)
    return found.reshape(len(warps), rows, 32)


def _turned(state: Lanes, matrix: Matrix, warps: Ints, row: Ints, group: Ints) -> Bytes:
    """The same of a matrix whose rows are contiguous across: eight of them make a 16-byte piece of one depth."""
    rows, span = row.shape[1], matrix.swizzle // 2
    eight, depth = row[:, ::8, None], np.arange(16)
    lines = matrix.start[:, None, None] + eight // span * matrix.leading[:, None, None]
    lines = lines + depth // 8 * matrix.stride[:, None, None] + depth % 8 * matrix.swizzle + eight % span * 2
    found = state.shared.feed(warps, swizzled(lines, matrix.swizzle).reshape(len(warps), -1), group)
    halves = np.ascontiguousarray(found).view(np.uint16).reshape(len(warps), rows // 8, 16, 8)
    return np.ascontiguousarray(halves.transpose(0, 1, 3, 2)).reshape(len(warps), rows, 16).view(np.uint8)


def _matrix(bits: Ints) -> Matrix:
    """Descriptors of 64 bits, of which all warps have the same swizzle."""
    swizzles = np.unique(bits >> 62 & 3)
    if len(swizzles) != 1 or not swizzles[0] or (bits >> 49 & 7).any():
        raise Fault("a matrix descriptor that is not known here")
    start, leading, stride = (16 * (bits >> at & 0x3FFF) for at in (0, 16, 32))
    return Matrix(start, leading, stride, SWIZZLES[int(swizzles[0])])


OPERATIONS: dict[str, Callable[[Lanes, Words, Operands], None]] = {"wgmma": wgmma}
