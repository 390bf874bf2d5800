"""order: what each warp knows to have happened, as vector clocks; what it does not know may happen at the same time.

Each warp counts: it goes on by one whenever it tells others of what it did. What it knows of another is that one's
count when it last told. A copy of the tensor memory accelerator counts as done by its mbarrier, whose count is that of
the phases it went through. Lanes of one warp know everything of one another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptx.memory import Ints

Counts = NDArray[np.int32]
# Accesses as threads make them, and what a fence made of them visible to wgmma and to copies of whole tiles.
GENERIC, ASYNC = 0, 1
MBARRIERS = 64


class Order:
    """What the warps of a launch know.

    Attributes:
        per_block: warps of a block.
        own: [warps], the place of each among those of its block.
        known: [2, warps, actors] of GENERIC and ASYNC accesses; actors are a block's warps, then its mbarriers.
    """

    def __init__(self, blocks: int, per_block: int) -> None:
        every = np.arange(blocks * per_block)
        self.per_block = per_block
        self.own: Ints = every % per_block
        self.known: Counts = np.zeros((2, len(every), per_block + MBARRIERS), np.int32)
        self.known[GENERIC, every, self.own] = 1

    def nothing(self, *shape: int) -> Counts:
        """[2, *shape, actors]: what one knows who was told nothing."""
        return np.zeros((2, *shape, self.known.shape[2]), np.int32)

    def now(self, warps: Ints) -> Counts:
        """[warps]: their own counts."""
        found: Counts = self.known[GENERIC, warps, self.own[warps]]
        return found

    def release(self, warps: Ints) -> Counts:
        """[2, warps, actors]: what different warps tell; what they do from now on is not in it."""
        told: Counts = self.known[:, warps].copy()
        self.known[GENERIC, warps, self.own[warps]] += 1
        return told

    def acquire(self, warps: Ints, told: Counts) -> None:
        """Different warps hear what was told, [2, warps, actors]."""
        self.known[:, warps] = np.maximum(self.known[:, warps], told)

    def fence(self, warps: Ints) -> None:
        """fence.proxy.async: all that these warps know is visible to asynchronous accesses."""
        self.known[ASYNC, warps] = self.release(warps)[GENERIC]
