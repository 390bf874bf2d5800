"""products: which registers belong to a product (wgmma) that is under way, and which to one that may begin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptx.memory import Fault, Ints
from ptx.parse import Program, several

NONE = -1
Lanes = NDArray[np.bool_]


class Products:
    """The registers of asynchronous products, of every warp.

    Attributes:
        operands, results: registers that some product of the program reads or writes; that it writes.
        fences, committed: [warps], how many wgmma.fence and groups of products there were.
        touched: of an operand [warps], how many fences there had been when something else wrote it.
        flying: of an operand [warps], the group of the product that it belongs to, or NONE.
    """

    def __init__(self, program: Program, warps: int) -> None:
        products = [one.operands for one in program.instructions if one.words[:2] == ("wgmma", "mma_async")]
        self.results = {register for operands in products for register in several(operands[0])}
        self.operands = self.results | {register for operands in products for register in several(operands[1])}
        self.fences: Ints = np.zeros(warps, np.int64)
        self.committed: Ints = np.zeros(warps, np.int64)
        self.touched: dict[str, Ints] = {}
        self.flying: dict[str, Ints] = {}

    def check(self, register: str, on: Lanes) -> None:
        """Nothing but a product may read what one is to write, or write what one reads. on: [lanes]"""
        if (self.flying[register] != NONE)[on.reshape(-1, 32).any(1)].any():
            raise Fault(f"{register} is used while a product is under way that it belongs to")

    def touch(self, register: str, on: Lanes) -> None:
        """A write by something else than a product."""
        if register in self.flying:
            self.check(register, on)
        touched = self.touched.setdefault(register, np.full(len(self.fences), NONE))
        warps = on.reshape(-1, 32).any(1)
        touched[warps] = self.fences[warps]

    def begin(self, register: str, warps: Ints) -> None:
        """A product of these warps takes a register."""
        if register in self.touched and (self.touched[register][warps] >= self.fences[warps]).any():
            raise Fault(f"no wgmma.fence since {register} was written")
        self.flying.setdefault(register, np.full(len(self.fences), NONE))[warps] = self.committed[warps]

    def finish(self, done: Ints) -> None:
        """All groups below a warp's number in `done` [warps] are there."""
        for register in list(self.flying):
            groups = self.flying[register]
            groups[groups < done] = NONE
            if (groups == NONE).all():
                del self.flying[register]
