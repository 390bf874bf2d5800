"""machine: runs a launch; of all threads that wait for nothing the ones at the lowest place go first.

Threads that branched apart meet again there, for code that compilers emit goes forward but in loops; warps with code of
their own run until they wait. Blocks know nothing of one another but global memory, whose atomics run in a shuffled
order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptx import arithmetic, conversions, copies, movement, tensor_cores, waiting, warpgroups
from ptx.barriers import READY
from ptx.lanes import Lanes
from ptx.memory import Fault, Memory
from ptx.parse import Instruction, parse

MOST_STEPS = 1_000_000
# What orders memory between blocks, or threads of one warp, that run in step here anyway.
SILENT = ("membar", "prefetch", "griddepcontrol")
OPERATIONS = {
    **arithmetic.OPERATIONS,
    **conversions.OPERATIONS,
    **movement.OPERATIONS,
    **copies.OPERATIONS,
    **tensor_cores.OPERATIONS,
    **warpgroups.OPERATIONS,
    **waiting.OPERATIONS,
}


def run(state: Lanes) -> int:
    """To the end of all threads; how many instructions were run for some thread."""
    end, steps = len(state.program.instructions), 0
    while not state.done.all():
        ready = ~state.done & (state.waits_for == READY)
        if not ready.any():
            raise Fault(f"deadlock: {waiting.stuck(state)}")
        place = int(state.place[ready].min())
        here = ready & (state.place == place)
        later = state.place[ready & ~here]
        if place == end:
            _leave(state, here)
            continue
        steps += _advance(state, here, place, int(later.min()) if len(later) else end)
        if steps > MOST_STEPS:
            raise Fault("a kernel that does not end")
    return steps


def _advance(state: Lanes, here: NDArray[np.bool_], place: int, until: int) -> int:
    """From a place to one where others are, or where some of these lanes may leave the rest; how many instructions."""
    first = place
    together = True
    while together and place < until:
        instruction = state.program.instructions[place]
        place += 1
        state.on = here
        try:
            if instruction.guard:
                guard = state.read(instruction.guard, np.bool_)
                state.on = here & (~guard if instruction.negated else guard)
            together = instruction.words[0] not in APART
            if not together:
                state.place[here] = place
            if not instruction.guard or state.on.any():
                _step(state, instruction)
        except Fault as fault:
            raise Fault(f"{fault}, in `{instruction.text}`") from None
    if together:
        state.place[here] = place
    return place - first


def _step(state: Lanes, instruction: Instruction) -> None:
    operation = instruction.words[0]
    if operation in APART:
        APART[operation](state, instruction)
    elif operation not in SILENT:
        if operation not in OPERATIONS:
            raise Fault("an instruction that is not known here")
        with np.errstate(all="ignore"):
            OPERATIONS[operation](state, instruction.words, instruction.operands)


def _branch(state: Lanes, instruction: Instruction) -> None:
    if instruction.words[0] == "bra":
        state.place[state.on] = instruction.targets[0]
        return
    chosen = state.read(instruction.operands[0], np.uint32)[state.on]
    if chosen.max() >= len(instruction.targets):
        raise Fault(f"no label {chosen.max()} in a table of {len(instruction.targets)}")
    state.place[state.on] = np.array(instruction.targets)[chosen]


def _wait(state: Lanes, instruction: Instruction) -> None:
    waiting.WAITS[instruction.words[0]](state, instruction.words, instruction.operands)


def _leave(state: Lanes, here: NDArray[np.bool_]) -> None:
    state.done |= here
    state.barriers.settle(state.done, state.waits_for)


# What may send lanes different ways, or stop some of them.
APART = {
    **dict.fromkeys(("bra", "brx"), _branch),
    **dict.fromkeys(("ret", "exit"), lambda state, _: _leave(state, state.on)),
    **dict.fromkeys(waiting.WAITS, _wait),
}


def launch(text: str, memory: Memory, grid: tuple[int, ...], threads: int, shared: int, parameters: list[int]) -> int:
    """Run a kernel, given as PTX, to its end.

    Args:
        threads: of a block.
        shared: bytes of shared memory of a block.
        parameters: addresses and numbers, in the kernel's order; what is missing is 0.
    """
    return run(Lanes(parse(text), memory, grid, threads, max(shared, 16), parameters))
