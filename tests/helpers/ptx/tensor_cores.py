"""tensor_cores: ldmatrix and mma.sync of 16-bit floats, by the layouts of NVIDIA's manual of PTX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.lanes import Lanes
from ptx.memory import Fault
from ptx.movement import several

Words, Operands = tuple[str, ...], tuple[str, ...]


def load_matrices(state: Lanes, words: Words, operands: Operands) -> None:
    """ldmatrix: one to four 8x8 matrices of 16 bits, the rows' addresses given by eight lanes each."""
    on, warps = state.on, state.whole_warps()
    address = state.address(operands[1], np.uint32)
    for at, register in enumerate(several(operands[0])):
        giving = np.flatnonzero(np.repeat(warps, 8)) // 8 * 32 + np.tile(np.arange(8), int(warps.sum())) + 8 * at
        rows = state.shared.read(state.block[giving], state.warp[giving], address[giving], 16)
        matrix = rows.view(np.uint16).reshape(-1, 8, 8)
        if "trans" in words:
            matrix = matrix.transpose(0, 2, 1)
        value = np.zeros(state.lanes, np.uint32)
        value[on] = np.ascontiguousarray(matrix).reshape(-1).view(np.uint32)
        state.write(register, value)


def multiply(state: Lanes, words: Words, operands: Operands) -> None:
    """mma.sync.m16n8k16 with float32 sums, which are exact here but for the last rounding."""
    state.whole_warps()
    if "m16n8k16" not in words or words[-2] not in ("bf16", "f16"):
        raise Fault("a product that is not known here")
    lane = np.arange(state.lanes) % 32
    group, pair, warp = lane // 4, 2 * (lane % 4), state.warp
    a, b, c = (np.zeros((state.lanes // 32, *shape)) for shape in ((16, 16), (16, 8), (16, 8)))
    for at, register in enumerate(several(operands[1])):
        for half, value in enumerate(_halves(state, register, words[-2])):
            a[warp, group + 8 * (at % 2), pair + half + 8 * (at // 2)] = value
    for at, register in enumerate(several(operands[2])):
        for half, value in enumerate(_halves(state, register, words[-2])):
            b[warp, pair + half + 8 * at, group] = value
    for at, register in enumerate(several(operands[3])):
        c[warp, group + 8 * (at // 2), pair + at % 2] = state.read(register, np.float32)
    sums = (a @ b + c).astype(np.float32)
    for at, register in enumerate(several(operands[0])):
        state.write(register, sums[warp, group + 8 * (at // 2), pair + at % 2])


def _halves(state: Lanes, register: str, kind: str) -> list[NDArray[Any]]:
    """The two numbers of a register, the lower first."""
    bits = state.read(register, np.uint32)
    halves = [(bits & np.uint32(0xFFFF)).astype(np.uint16), (bits >> np.uint32(16)).astype(np.uint16)]
    if kind == "f16":
        return [half.view(np.float16).astype(np.float64) for half in halves]
    return [(half.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64) for half in halves]


OPERATIONS: dict[str, Callable[[Lanes, Words, Operands], None]] = {"ldmatrix": load_matrices, "mma": multiply}
