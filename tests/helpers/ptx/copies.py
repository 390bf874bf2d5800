"""copies: from global to shared memory while threads go on: cp.async, and whole tiles by tensor maps."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from ptx.lanes import Lanes, Operands, Words
from ptx.memory import Bytes, Fault, swizzled
from ptx.parse import several

TILE = re.compile(r"\[\s*(%?\w+)\s*,\s*(\{.*\})\s*\]")


def copy(state: Lanes, words: Words, operands: Operands) -> None:
    """cp.async: 4 to 16 bytes, of which those beyond a given number are zeros, then groups and waits for them."""
    on = state.on
    if words[2] == "bulk":
        copy_tiles(state, words, operands)
    elif words[2] == "commit_group":
        state.committed[on] += 1
    elif words[2] == "wait_group":
        state.shared.arrive(np.where(on, state.committed - int(operands[0], 0), 0))
    elif words[2] == "wait_all":
        state.shared.arrive(np.where(on, state.committed + 1, 0))
    else:
        size = int(operands[2], 0)
        filled = state.read(operands[3], np.uint32)[on].astype(np.int64) if len(operands) > 3 else None
        source = state.address(operands[1], np.uint64)[on]
        content: Bytes = np.zeros((len(source), size), np.uint8)
        wanted = np.ones(len(source), bool) if filled is None else filled > 0
        if filled is not None and not np.isin(filled, (0, size)).all():
            raise Fault("a copy of a part")
        content[wanted] = state.memory.read(source[wanted], size)
        to, lanes = state.address(operands[0], np.uint32)[on], np.flatnonzero(on)
        state.shared.copy(state.warp[on], lanes, to, content, state.committed[on])


def copy_tiles(state: Lanes, words: Words, operands: Operands) -> None:
    """cp.async.bulk.tensor to shared memory: a box with its swizzle, zeros outside, and its bytes to an mbarrier."""
    if words[3] != "tensor" or "mbarrier::complete_tx::bytes" not in words or len(operands) != 3:
        raise Fault("a copy that is not known here")
    tile = TILE.fullmatch(operands[1])
    if tile is None:
        raise Fault("a copy that is not known here")
    lanes = np.flatnonzero(state.on)
    to, mbarrier = (state.address(operands[at], np.uint32)[lanes] for at in (0, 2))
    maps = state.read(tile[1], np.uint64)[lanes]
    corners = np.stack([state.read(part, np.int32)[lanes] for part in reversed(several(tile[2]))], 1)
    at = state.mbarriers.find(state.warp[lanes], mbarrier)
    for n, warp in enumerate(state.warp[lanes].tolist()):
        tensor_map = state.memory.maps.get(int(maps[n]))
        if tensor_map is None or len(tensor_map.box) != corners.shape[1]:
            raise Fault(f"no tensor map of {corners.shape[1]} dimensions at {maps[n]}")
        if to[n] % 128:
            raise Fault(f"shared address {to[n]} is no multiple of 128")
        content = state.memory.tile(tensor_map, tuple(corners[n].tolist()))
        pieces = swizzled(to[n] + 16 * np.arange(len(content) // 16), tensor_map.swizzle)
        block, column = int(at[0][n]), int(at[1][n])
        actor, count = state.order.per_block + column, int(state.mbarriers.age[block, column]) + 1
        state.shared.fill(warp, pieces, content.reshape(-1, 16), actor, count)
        one = at[0][n : n + 1], at[1][n : n + 1]
        state.mbarriers.expect(one, np.array([-len(content)]))
        state.mbarriers.settle(one, state.waits_for)


OPERATIONS: dict[str, Callable[[Lanes, Words, Operands], None]] = {"cp": copy}
