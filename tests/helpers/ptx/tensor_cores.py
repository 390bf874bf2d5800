"""tensor_cores: matrices between shared memory and registers, and mma.sync, by the layouts of NVIDIA's manual of PTX.

A row of A, and a column of B, is 32 bytes whatever the type: eight words, of which a register holds one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.conversions import E4M3
from ptx.lanes import WARP, Lanes, Operands, Words
from ptx.memory import Bytes, Fault
from ptx.parse import several

Numbers = NDArray[np.float64]
# The depth of a product by the type of its factors.
DEPTHS = {"bf16": 16, "f16": 16, "tf32": 8, "s8": 32, "u8": 32, "e4m3": 32}


def numbers(content: Bytes, kind: str) -> Numbers:
    """Bytes [..., n] as numbers; of tf32 the lower bits do not count."""
    content = np.ascontiguousarray(content)
    if kind == "bf16":
        found: NDArray[Any] = (content.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif kind == "tf32":
        found = (content.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    elif kind == "e4m3":
        found = E4M3[content]
    else:
        found = content.view({"f16": np.float16, "s8": np.int8, "u8": np.uint8}[kind])
    return found.astype(np.float64)


def words_of(state: Lanes, operand: str, rows: int) -> Bytes:
    """[warps, rows, 32]: the bytes of a matrix of 16 or 8 rows, from registers."""
    lane = np.arange(state.lanes) % WARP
    made = np.zeros((state.lanes // WARP, rows, 8), np.uint32)
    for at, register in enumerate(several(operand)):
        half, quarter = (at % 2, at // 2) if rows == 16 else (0, at)
        made[state.warp, lane // 4 + 8 * half, lane % 4 + 4 * quarter] = state.read(register, np.uint32)
    return made.view(np.uint8)


def load_matrices(state: Lanes, words: Words, operands: Operands) -> None:
    """ldmatrix: one to four 8x8 matrices of 16 bits, the rows' addresses given by eight lanes each."""
    on, address = state.on, state.address(operands[1], np.uint32)
    for at, register in enumerate(several(operands[0])):
        giving = _giving(state, at)
        rows = state.shared.read(state.warp[giving], address[giving], 16)
        matrix = rows.view(np.uint16).reshape(-1, 8, 8)
        if "trans" in words:
            matrix = matrix.transpose(0, 2, 1)
        value = np.zeros(state.lanes, np.uint32)
        value[on] = np.ascontiguousarray(matrix).reshape(-1).view(np.uint32)
        state.write(register, value)


def store_matrices(state: Lanes, words: Words, operands: Operands) -> None:
    """stmatrix, the other way."""
    address = state.address(operands[0], np.uint32)
    for at, register in enumerate(several(operands[1])):
        giving = _giving(state, at)
        matrix = state.read(register, np.uint32)[state.on].copy().view(np.uint16).reshape(-1, 8, 8)
        if "trans" in words:
            matrix = matrix.transpose(0, 2, 1)
        content = np.ascontiguousarray(matrix).view(np.uint8).reshape(-1, 16)
        state.shared.write(state.warp[giving], address[giving], content)


def _giving(state: Lanes, at: int) -> NDArray[np.int64]:
    """The lanes that give the rows of a matrix."""
    warps = np.flatnonzero(state.whole_warps())
    return (warps[:, None] * WARP + np.arange(8) + 8 * at).reshape(-1)


def multiply(state: Lanes, words: Words, operands: Operands) -> None:
    """mma.sync of 16 x 8, whose sums are exact here but for the last rounding."""
    state.whole_warps()
    kind, total = words[-2], words[-1]
    if words[3] != f"m16n8k{DEPTHS.get(kind, 0)}" or (total != "f32" and (total != "s32" or "satfinite" not in words)):
        raise Fault("a product that is not known here")
    lane = np.arange(state.lanes) % WARP
    a, b = (numbers(words_of(state, operand, rows), kind) for operand, rows in ((operands[1], 16), (operands[2], 8)))
    c = np.zeros((state.lanes // WARP, 16, 8))
    of: type[Any] = np.float32 if total == "f32" else np.int32
    for at, register in enumerate(several(operands[3])):
        c[state.warp, lane // 4 + 8 * (at // 2), 2 * (lane % 4) + at % 2] = state.read(register, of)
    sums = a @ b.transpose(0, 2, 1) + c
    made = sums.astype(of) if total == "f32" else np.clip(sums, -(2**31), 2**31 - 1).astype(of)
    for at, register in enumerate(several(operands[0])):
        state.write(register, made[state.warp, lane // 4 + 8 * (at // 2), 2 * (lane % 4) + at % 2])


OPERATIONS: dict[str, Callable[[Lanes, Words, Operands], None]] = {
    "ldmatrix": load_matrices,
    "stmatrix": store_matrices,
    "mma": multiply,
}
