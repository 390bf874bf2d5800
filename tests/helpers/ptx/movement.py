"""movement: between registers, memories and the lanes of a warp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.arithmetic import KINDS
from ptx.lanes import Lanes, Operands, Words
from ptx.memory import Bytes, Fault
from ptx.parse import several


def move(state: Lanes, words: Words, operands: Operands) -> None:
    """mov: whole, or between a register and its parts."""
    kind = KINDS[words[-1]]
    to, of = several(operands[0]), several(operands[1])
    if len(to) == len(of) == 1:
        state.write(to[0], state.read(of[0], kind).copy())
        return
    part = f"u{np.dtype(kind).itemsize // max(len(to), len(of))}"
    if len(of) > 1:
        parts = np.stack([state.read(register, np.dtype(part).type) for register in of], 1)
        state.write(to[0], parts.view(kind)[:, 0])
    else:
        parts = state.read(of[0], kind).copy().view(part).reshape(state.lanes, len(to))
        for at, register in enumerate(to):
            state.write(register, parts[:, at].copy())


def address_of(state: Lanes, words: Words, operands: Operands) -> None:
    """cvta of a parameter, which is where the launch put it."""
    if words[1] != "param":
        raise Fault("an address that is not known here")
    state.write(operands[0], state.read(operands[1], np.uint64).copy())


def load(state: Lanes, words: Words, operands: Operands) -> None:
    """ld, of parameters, global or shared memory; vectors are aligned as a whole."""
    kind = KINDS[words[-1]]
    registers = several(operands[0])
    if words[1] == "param":
        number = state.parameters[operands[1].strip("[] ")] & (2**64 - 1)
        bits = np.full(state.lanes, number, np.uint64).astype(f"u{np.dtype(kind).itemsize}")
        state.write(registers[0], bits.view(kind))
        return
    size = np.dtype(kind).itemsize * len(registers)
    found = _read(state, words[1], operands[1], size)
    for at, register in enumerate(registers):
        value = np.zeros(state.lanes, kind)
        value[state.on] = np.ascontiguousarray(found).view(kind)[:, at]
        state.write(register, value)


def _read(state: Lanes, space: str, operand: str, size: int) -> Bytes:
    on = state.on
    if space == "global":
        return state.memory.read(state.address(operand, np.uint64)[on], size)
    return state.shared.read(state.warp[on], state.address(operand, np.uint32)[on], size)


def store(state: Lanes, words: Words, operands: Operands) -> None:
    """st, to global or shared memory."""
    kind, on = KINDS[words[-1]], state.on
    values = np.stack([state.read(register, kind)[on] for register in several(operands[1])], 1)
    content = np.ascontiguousarray(values).view(np.uint8)
    if words[1] == "global":
        state.memory.write(state.address(operands[0], np.uint64)[on], content)
    else:
        address = state.address(operands[0], np.uint32)[on]
        state.shared.write(state.warp[on], address, content)


def atomic(state: Lanes, words: Words, operands: Operands) -> None:
    """atom.add, and red.add, which gives nothing back, on 32 bits of global memory: lanes in a shuffled order."""
    if words[-2:] != ("add", "u32") and words[-2:] != ("add", "s32"):
        raise Fault("an atomic that is not known here")
    address, added = state.address(operands[-2], np.uint64), state.read(operands[-1], np.uint32)
    before = np.zeros(state.lanes, np.uint32)
    lanes = state.random.permutation(np.flatnonzero(state.on))
    words32 = state.memory.bytes.view(np.uint32)
    for lane, place in zip(lanes, state.memory.at(address[lanes], 4)[:, 0] // 4, strict=True):
        before[lane] = words32[place]
        words32[place] += added[lane]
    if words[0] == "atom":
        state.write(operands[0], before)


def shuffle(state: Lanes, words: Words, operands: Operands) -> None:
    """shfl.sync among all lanes of a warp."""
    value, by = state.read(operands[1], np.uint32), state.read(operands[2], np.uint32).astype(np.int64)
    lane = np.arange(state.lanes) % 32
    first = np.arange(state.lanes) - lane
    other = {"bfly": lane ^ by, "idx": by % 32, "down": lane + by, "up": lane - by}[words[2]]
    source = first + np.where((other < 0) | (other > 31), lane, other)
    if not state.on[source][state.on].all():
        raise Fault("a shuffle from a lane that is not there")
    state.write(operands[0].split("|")[0], value[source])


def reduce(state: Lanes, words: Words, operands: Operands) -> None:
    """redux.sync over all lanes of a warp."""
    state.whole_warps()
    value: NDArray[Any] = state.read(operands[1], KINDS[words[-1]]).reshape(-1, 32)
    how = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}[words[2]]
    state.write(operands[0], np.repeat(how.reduce(value, 1, dtype=value.dtype), 32))


OPERATIONS: dict[str, Callable[[Lanes, Words, Operands], None]] = {
    "mov": move,
    "ld": load,
    "st": store,
    "atom": atomic,
    "red": atomic,
    "cvta": address_of,
    "shfl": shuffle,
    "redux": reduce,
}
