"""waiting: what threads wait at: barriers, mbarriers, and registers that others hand over; and fences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx.barriers import ALL, NUMBERS
from ptx.lanes import WARP, Lanes, Operands, Words
from ptx.memory import Fault, Ints


def meet(state: Lanes, words: Words, operands: Operands) -> None:
    """bar and barrier, of a block: sync or arrive, the number, and of how many threads."""
    if words[1] == "warp":
        return
    how = words[2] if words[1] == "cta" else words[1]
    if how not in ("sync", "arrive"):
        raise Fault("a barrier that is not known here")
    lanes = np.flatnonzero(state.on)
    numbers = state.read(operands[0], np.uint32)[lanes]
    counts = state.read(operands[1], np.int32)[lanes] if len(operands) > 1 else np.full(len(lanes), ALL)
    for number, count in sorted(set(zip(numbers.tolist(), counts.tolist(), strict=True))):
        if number >= NUMBERS or (count != ALL and (count <= 0 or count % WARP)):
            raise Fault(f"barrier {number} for {count} threads")
        here = lanes[(numbers == number) & (counts == count)]
        state.barriers.arrive(number, here, count)
        if how == "sync":
            state.waits_for[here] = number
    state.barriers.settle(state.done, state.waits_for)


def mbarrier(state: Lanes, words: Words, operands: Operands) -> None:
    """mbarrier: init, inval, arrive, expect_tx, and waits by parity."""
    on, what = state.on, words[1]
    warps, lanes = state.warp[on], np.flatnonzero(on)
    if what in ("try_wait", "test_wait"):
        _wait(state, operands)
    elif what == "init":
        counts = state.read(operands[1], np.uint32)[on].astype(np.int64)
        state.mbarriers.make(warps, state.address(operands[0], np.uint32)[on], counts)
    elif what == "inval":
        state.mbarriers.end(warps, state.address(operands[0], np.uint32)[on])
    elif what in ("arrive", "expect_tx"):
        address = operands[1] if what == "arrive" else operands[0]
        if what == "arrive" and operands[0] != "_":
            raise Fault("an arrival whose state is kept")
        at = state.mbarriers.find(warps, state.address(address, np.uint32)[on])
        number = state.read(operands[-1], np.uint32)[on].astype(np.int64) if operands[-1] != address else None
        if "expect_tx" in words and number is not None:
            state.mbarriers.expect(at, number)
        if what == "arrive":
            alone = "expect_tx" in words or number is None
            state.mbarriers.arrive(warps, at, np.ones(len(lanes), np.int64) if alone else number)
        state.mbarriers.settle(at, state.waits_for)
    else:
        raise Fault("an instruction that is not known here")


def _wait(state: Lanes, operands: Operands) -> None:
    """try_wait.parity: lanes that would be told no come back when the phase has ended."""
    on, mbarriers = state.on, state.mbarriers
    lanes = np.flatnonzero(on)
    at = mbarriers.find(state.warp[on], state.address(operands[1], np.uint32)[on])
    passed = mbarriers.passed(at, state.read(operands[2], np.uint32)[on] & 1)
    mbarriers.hear(state.warp[lanes[passed]], (at[0][passed], at[1][passed]))
    state.place[lanes[~passed]] -= 1
    state.waits_for[lanes[~passed]] = mbarriers.FIRST + at[1][~passed]
    state.on = np.isin(np.arange(state.lanes), lanes[passed])
    if passed.any():
        state.write(operands[0], np.ones(state.lanes, bool))


def fence(state: Lanes, words: Words, operands: Operands) -> None:
    """fence.proxy.async is kept; others order what runs in order here."""
    if words[:3] == ("fence", "proxy", "async"):
        state.order.fence(np.unique(state.warp[state.on]))


def elect(state: Lanes, words: Words, operands: Operands) -> None:
    """elect.sync: the first lane of each warp that is here."""
    if state.read(operands[1], np.int32)[state.on].tolist() != [-1] * int(state.on.sum()):
        raise Fault("an election among some lanes")
    state.whole_warps()
    lane = np.arange(state.lanes) % WARP
    register, predicate = operands[0].split("|")
    state.write(register, np.zeros(state.lanes, np.uint32))
    state.write(predicate, lane == 0)


def stuck(state: Lanes) -> str:
    """Who waits for what, block by block, where nobody goes on."""
    told = []
    wanted = state.barriers.wanted(state.done)
    names = {column: address for address, column in state.mbarriers.columns.items()}
    for block in np.unique(state.block[~state.done])[:1]:
        within = ~state.done & (state.block == block)
        for number in np.unique(state.waits_for[within]):
            warps: Ints = np.unique(state.warp[within & (state.waits_for == number)]) % state.order.per_block
            if number < NUMBERS:
                there = f"{state.barriers.arrived[block, number]} of {wanted[block, number]} threads"
                what = f"at barrier {number} with {there}"
            else:
                column = number - state.mbarriers.FIRST
                missing, size = state.mbarriers.missing[block, column], state.mbarriers.bytes[block, column]
                phase = state.mbarriers.phase[block, column]
                what = (
                    f"for the mbarrier at {names[column]}, whose phase {phase} misses {missing} arrivals, {size} bytes"
                )
            told.append(f"warps {', '.join(map(str, warps))} of block {block} wait {what}")
    return "; ".join(told)


WAITS: dict[str, Callable[[Lanes, Words, Operands], None]] = {
    **dict.fromkeys(("bar", "barrier"), meet),
    "mbarrier": mbarrier,
}
OPERATIONS: dict[str, Callable[[Lanes, Words, Operands], None]] = {
    "fence": fence,
    "elect": elect,
    "setmaxnreg": lambda state, words, operands: None,
}
