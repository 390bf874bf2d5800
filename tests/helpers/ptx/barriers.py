"""barriers: those of a block by number, those in shared memory, and what is told from thread to thread at them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptx.memory import Fault, Ints
from ptx.order import MBARRIERS, Order
from ptx.shared import Shared

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


class Mbarriers:
    """Barriers in shared memory, which count arrivals and the bytes of copies, phase after phase.

    [blocks, MBARRIERS] each, a column for an address.

    Attributes:
        expected, missing: arrivals of a phase, and how many are not there yet.
        bytes: that copies still have to bring in this phase.
        phase: how many have ended since it was made; age: since its memory was first one.
        gathered, told: [2, blocks, MBARRIERS, actors], what arrived in this phase, and what those told who waited.
        FIRST: what a lane that waits for column c `waits_for`, less c.
    """

    FIRST = 100

    def __init__(self, blocks: int, order: Order, shared: Shared) -> None:
        self.order, self.shared = order, shared
        self.columns: dict[int, int] = {}
        self.alive = np.zeros((blocks, MBARRIERS), bool)
        self.expected, self.missing, self.bytes, self.phase, self.age = np.zeros((5, blocks, MBARRIERS), np.int64)
        self.gathered, self.told = order.nothing(blocks, MBARRIERS), order.nothing(blocks, MBARRIERS)

    def make(self, warps: Ints, addresses: Ints, counts: Ints) -> None:
        """mbarrier.init, which is a write to shared memory as any other."""
        for address in np.unique(addresses):
            self.columns.setdefault(int(address), len(self.columns))
        if len(self.columns) > MBARRIERS:
            raise Fault(f"more than {MBARRIERS} mbarriers")
        self.shared.write(warps, addresses, np.zeros((len(warps), 8), np.uint8))
        at = warps // self.order.per_block, self._columns(addresses)
        if self.alive[at].any():
            raise Fault("an mbarrier made where there is one")
        self.alive[at], self.expected[at], self.missing[at] = True, counts, counts
        self.bytes[at], self.phase[at] = 0, 0

    def end(self, warps: Ints, addresses: Ints) -> None:
        """mbarrier.inval: the memory is free, once nobody uses it any more."""
        at = self.find(warps, addresses)
        if self.bytes[at].any():
            raise Fault("an mbarrier ended while copies to it are on their way")
        self.shared.write(warps, addresses, np.zeros((len(warps), 8), np.uint8))
        self.alive[at] = False

    def find(self, warps: Ints, addresses: Ints) -> tuple[Ints, Ints]:
        """Blocks and columns of mbarriers that these warps know of."""
        at = warps // self.order.per_block, self._columns(addresses)
        if not self.alive[at].all():
            raise Fault(f"no mbarrier at {addresses[~self.alive[at]][0]}")
        self.shared.read(warps, addresses, 8)
        return at

    def expect(self, at: tuple[Ints, Ints], size: Ints) -> None:
        """More bytes of copies, which the present phase has to wait for; fewer, when they are there."""
        np.add.at(self.bytes, at, size)

    def arrive(self, warps: Ints, at: tuple[Ints, Ints], counts: Ints) -> None:
        """Arrivals of lanes of these warps."""
        for warp, column in sorted(set(zip(warps.tolist(), at[1].tolist(), strict=True))):
            told = self.order.release(np.array([warp]))[:, 0]
            gathered = self.gathered[:, warp // self.order.per_block, column]
            np.maximum(gathered, told, out=gathered)
        np.subtract.at(self.missing, at, counts)
        if (self.missing[at] < 0).any():
            raise Fault("more arrivals at an mbarrier than it counts in a phase")

    def settle(self, at: tuple[Ints, Ints], waits_for: Ints) -> None:
        """Ends the phases that nothing is missing from, and the wait of those lanes [lanes] that wait for them."""
        lanes = len(waits_for) // len(self.alive)
        for block, column in sorted(set(zip(at[0].tolist(), at[1].tolist(), strict=True))):
            if self.missing[block, column] or self.bytes[block, column]:
                continue
            self.age[block, column] += 1
            self.phase[block, column] += 1
            self.missing[block, column] = self.expected[block, column]
            told, gathered = self.told[:, block, column], self.gathered[:, block, column]
            np.maximum(told, gathered, out=told)
            told[:, self.order.per_block + column] = self.age[block, column]
            gathered[:] = 0
            waiting = waits_for[block * lanes : (block + 1) * lanes]
            waiting[waiting == self.FIRST + column] = READY

    def passed(self, at: tuple[Ints, Ints], parity: Ints) -> NDArray[np.bool_]:
        """Whether the phase before the present one has this parity; the one before the first has 1."""
        passed: NDArray[np.bool_] = self.phase[at] % 2 != parity
        return passed

    def hear(self, warps: Ints, at: tuple[Ints, Ints]) -> None:
        """These warps have waited."""
        for warp, block, column in sorted(set(zip(warps.tolist(), at[0].tolist(), at[1].tolist(), strict=True))):
            self.order.acquire(np.array([warp]), self.told[:, block, column][:, None])

    def _columns(self, addresses: Ints) -> Ints:
        unknown = set(addresses.tolist()) - self.columns.keys()
        if unknown:
            raise Fault(f"no mbarrier at {min(unknown)}")
        return np.array([self.columns[address] for address in addresses.tolist()])
