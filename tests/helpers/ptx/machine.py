"""machine: runs a launch; of all its threads the ones at the lowest place go first.

Threads that branched apart meet again there, for code that compilers emit goes forward but in loops. Blocks know
nothing of one another but global memory, whose atomics run in a shuffled order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptx import arithmetic, movement, tensor_cores
from ptx.lanes import Lanes
from ptx.memory import Fault, Memory
from ptx.parse import Instruction, parse

MOST_STEPS = 1_000_000
# What orders memory between blocks, or threads of one warp, that run in step here anyway.
SILENT = ("membar", "fence", "prefetch", "griddepcontrol")
OPERATIONS = {**arithmetic.OPERATIONS, **movement.OPERATIONS, **tensor_cores.OPERATIONS}


def run(state: Lanes) -> int:
    """To the end of all threads; how many instructions were run for some thread."""
    end, steps = len(state.program.instructions), 0
    while not state.done.all():
        ready = ~(state.done | state.waiting)
        if not ready.any():
            _release(state)
            continue
        place = int(state.place[ready].min())
        here = ready & (state.place == place)
        if place == end:
            state.done |= here
            continue
        steps += 1
        if steps > MOST_STEPS:
            raise Fault("a kernel that does not end")
        instruction = state.program.instructions[place]
        try:
            _step(state, instruction, here)
        except Fault as fault:
            raise Fault(f"{fault}, in `{instruction.text}`") from None
    return steps


def _step(state: Lanes, instruction: Instruction, here: NDArray[np.bool_]) -> None:
    state.place[here] += 1
    state.on = here
    if instruction.guard:
        guard = state.registers[instruction.guard]
        state.on = here & (~guard if instruction.negated else guard)
    operation = instruction.words[0]
    if operation == "bra":
        state.place[state.on] = instruction.target
    elif operation in ("ret", "exit"):
        state.done |= state.on
    elif operation == "bar":
        if instruction.words[1] != "warp":
            state.waiting |= state.on
    elif operation not in SILENT and state.on.any():
        if operation not in OPERATIONS:
            raise Fault("an instruction that is not known here")
        with np.errstate(all="ignore"):
            OPERATIONS[operation](state, instruction.words, instruction.operands)


def _release(state: Lanes) -> None:
    """Ends the wait of all blocks, for no thread of theirs can go on: a new epoch."""
    state.shared.epoch[np.unique(state.block[state.waiting])] += 1
    state.waiting[:] = False


def launch(text: str, memory: Memory, grid: tuple[int, ...], threads: int, shared: int, parameters: list[int]) -> int:
    """Run a kernel, given as PTX, to its end.

    Args:
        threads: of a block.
        shared: bytes of shared memory of a block.
        parameters: addresses and numbers, in the kernel's order; what is missing is 0.
    """
    return run(Lanes(parse(text), memory, grid, threads, max(shared, 16), parameters))
