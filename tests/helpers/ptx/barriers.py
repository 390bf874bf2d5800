"""barriers: those of a block by number, and what is told from thread to thread at them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptx.memory import Fault, Ints
from ptx.order import Order

NUMBERS, ALL, READY = 16, -1, -1


class Barriers:
    """The numbered barriers of all blocks.

    Attributes:
        arrived, needed: [blocks, NUMBERS], threads so far, and how many it is for; ALL: all that have not ended.
        told: [2, blocks, NUMBERS, actors], what those that arrived know.
    """

    def __init__(self, blocks: int, threads: int, order: Order) -> None:
        self.threads, self.order = threads, order
        self.arrived, self.needed = np.zeros((2, blocks, NUMBERS), np.int64)
        self.told = order.nothing(blocks, NUMBERS)

    def arrive(self, number: int, lanes: Ints, count: int) -> None:
        """These lanes are at barrier `number`, which is for `count` of their block, or ALL."""
        blocks, arriving = np.unique(lanes // self.threads, return_counts=True)
        if ((self.arrived[blocks, number] > 0) & (self.needed[blocks, number] != count)).any():
            raise Fault(f"barrier {number} is for {count} threads here and for others elsewhere")
        self.arrived[blocks, number] += arriving
        self.needed[blocks, number] = count
        warps = np.unique(lanes // 32)
        first = np.flatnonzero(np.diff(warps // self.order.per_block, prepend=-1))
        told = np.maximum.reduceat(self.order.release(warps), first, 1)
        self.told[:, blocks, number] = np.maximum(self.told[:, blocks, number], told)

    def settle(self, done: NDArray[np.bool_], waits_for: Ints) -> None:
        """Ends the wait at barriers that all have reached; done, waits_for: [lanes]."""
        block = np.arange(len(done)) // self.threads
        needed = self.wanted(done)
        if (self.arrived > needed).any():
            raise Fault(f"more threads at a barrier than the {needed[self.arrived > needed][0]} that it is for")
        full = (self.arrived > 0) & (self.arrived == needed)
        for number in np.flatnonzero(full.any(0)):
            here = (waits_for == number) & full[block, number]
            warps = np.unique(np.flatnonzero(here) // 32)
            self.order.acquire(warps, self.told[:, warps // self.order.per_block, number])
            waits_for[here] = READY
            self.arrived[full[:, number], number] = 0
            self.told[:, full[:, number], number] = 0

    def wanted(self, done: NDArray[np.bool_]) -> Ints:
        """[blocks, NUMBERS]: how many threads each is for."""
        present = self.threads - done.reshape(-1, self.threads).sum(1)
        wanted: Ints = np.where(self.needed == ALL, present[:, None], self.needed)
        return wanted
