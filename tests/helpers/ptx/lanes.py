"""lanes: the state of a launch, all threads of it at once: each register is a numpy array over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.barriers import READY, Barriers, Mbarriers
from ptx.memory import Fault, Ints, Memory
from ptx.order import Order
from ptx.parse import Program
from ptx.products import Products
from ptx.shared import Shared

Words, Operands = tuple[str, ...], tuple[str, ...]
WARP = 32
TYPES = {"pred": np.bool_, "b8": np.uint8, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64, "f32": np.uint32}


class Lanes:
    """A launch under way.

    Attributes:
        lanes, threads: of all blocks; of one.
        block, warp: [lanes], of each lane; warps are counted through all blocks.
        place: [lanes], the instruction that comes next.
        done, waits_for: [lanes], whether it is at its end; the barrier or mbarrier that it waits for, or READY.
        on: [lanes], which lanes the present instruction is for.
        committed: [lanes], groups of asynchronous copies so far.
    """

    def __init__(
        self, program: Program, memory: Memory, grid: tuple[int, ...], threads: int, shared: int, parameters: list[int]
    ) -> None:
        grid = (*grid, 1, 1)[:3]
        blocks = int(np.prod(grid))
        self.program, self.memory, self.lanes, self.threads = program, memory, blocks * threads, threads
        lane = np.arange(self.lanes)
        self.block: Ints = lane // threads
        self.warp: Ints = lane // WARP
        self.order = Order(blocks, threads // WARP)
        self.shared = Shared(blocks, shared, self.order)
        self.barriers = Barriers(blocks, threads, self.order)
        self.mbarriers = Mbarriers(blocks, self.order, self.shared)
        self.products = Products(program, self.lanes // WARP)
        self.parameters = dict(zip(program.parameters, parameters + [0] * len(program.parameters), strict=False))
        self.registers: dict[str, NDArray[Any]] = {}
        self.constants: dict[tuple[str, int], NDArray[Any]] = {}
        self.place: Ints = np.zeros(self.lanes, np.int64)
        self.done, self.waits_for = np.zeros(self.lanes, bool), np.full(self.lanes, READY)
        self.committed: Ints = np.zeros(self.lanes, np.int64)
        self.on = np.ones(self.lanes, bool)
        self.random = np.random.default_rng(0)
        self.special = {
            "%tid.x": lane % threads,
            "%laneid": lane % WARP,
            "%ntid.x": np.full(self.lanes, threads),
            **{f"%ctaid.{axis}": at for axis, at in zip("xyz", self._coordinates(grid), strict=True)},
            **{f"%nctaid.{axis}": np.full(self.lanes, size) for axis, size in zip("xyz", grid, strict=True)},
        }

    def _coordinates(self, grid: tuple[int, ...]) -> list[Ints]:
        x, y, _ = grid
        return [self.block % x, self.block // x % y, self.block // (x * y)]

    def read(self, operand: str, kind: type[Any]) -> NDArray[Any]:
        """[lanes] of an operand's bits, as a numpy type of any size; not to be written to."""
        size = np.dtype(kind).itemsize
        if operand in self.registers:
            value = self.registers[operand]
            if operand in self.products.flying and operand in self.products.results:
                self.products.check(operand, self.on)
            if kind is np.bool_ or value.dtype.itemsize == size:
                return value.view(kind)
            return value.astype(f"u{size}").view(kind)
        if operand in self.special:
            return self.special[operand].astype(f"u{size}").view(kind)
        if operand in self.program.types or operand.startswith("%"):
            raise Fault(f"{operand} is read before it is written")
        if (operand, size) not in self.constants:
            number = self._constant(operand) & (2 ** (8 * size) - 1)
            self.constants[operand, size] = np.full(self.lanes, number, f"u{size}")
        return self.constants[operand, size].view(kind)

    def _constant(self, operand: str) -> int:
        if operand in self.parameters:
            return self.parameters[operand]
        if operand[:2] in ("0f", "0d"):
            return int(operand[2:], 16)
        return 0 if operand == "global_smem" else int(operand.rstrip("U"), 0)

    def write(self, register: str, value: NDArray[Any]) -> None:
        """Bits to a register of the lanes that are on, signed numbers with their sign; `_` takes them and is none."""
        if register == "_":
            return
        kind = TYPES[self.program.types[register]]
        if value.dtype != kind:
            size = np.dtype(kind).itemsize
            bits = value if value.dtype.kind == "i" else value.view(f"u{value.dtype.itemsize}")
            value = bits.astype(f"u{size}") if kind is not np.bool_ else value != 0
        if register in self.products.operands:
            self.products.touch(register, self.on)
        if self.on.all():
            self.registers[register] = value.copy()
            return
        before = self.registers.get(register)
        self.registers[register] = np.where(self.on, value, np.zeros_like(value) if before is None else before)

    def address(self, operand: str, kind: type[Any]) -> Ints:
        """[lanes] addresses of an operand in brackets."""
        base, _, offset = operand.strip("[] ").partition("+")
        return self.read(base.strip(), kind).astype(np.int64) + int(offset.strip() or "0", 0)

    def whole_warps(self) -> NDArray[np.bool_]:
        """[warps]: which are on; what a warp does together needs all of its lanes."""
        on: NDArray[np.bool_] = self.on.reshape(-1, WARP)
        if (on.any(1) != on.all(1)).any():
            raise Fault("not all lanes of a warp are here")
        return on[:, 0]
