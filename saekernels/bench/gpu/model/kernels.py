"""One kernel's time, from the operations that it does and the bytes that it moves; products, and what tiles read."""

from __future__ import annotations

from typing import NamedTuple

import torch

from saekernels.bench.gpu.cards import Card
from saekernels.bench.measure.shapes import Shape


class Kernel(NamedTuple):
    """One kernel's work.

    Attributes:
        flops: at `rate`, 10^12 per second.
        memory, l2: bytes.
        lanes: instructions per lane that nothing overlaps.
        launches: how often it is started.
        issued: instructions per lane beside which memory is read.
    """

    name: str
    flops: float = 0
    rate: float = 1
    memory: float = 0
    l2: float = 0
    lanes: float = 0
    launches: int = 1
    issued: float = 0

    def seconds(self, card: Card) -> float:
        """Its predicted time."""
        return max(self._units(card).values()) + self.lanes / card.lane_operations() + self.launches * card.launch

    def bound(self, card: Card) -> str:
        """The unit that takes longest, of those that work side by side: products, memory, L2 or issue."""
        units = self._units(card)
        return max(units, key=lambda name: units[name])

    def _units(self, card: Card) -> dict[str, float]:
        return {
            "products": self.flops / (self.rate * 1e12),
            "memory": self.memory / (card.memory * 1e9),
            "L2": self.l2 / (card.l2 * 1e9),
            "issue": self.issued / card.lane_operations(),
        }


def seconds(kernels: list[Kernel], card: Card) -> float:
    """Of all of them, one after another."""
    return sum(kernel.seconds(card) for kernel in kernels)


def product(shape: Shape, dtype: torch.dtype, card: Card) -> Kernel:
    """torch's x @ W.T alone, its output written."""
    T, d, F, _ = shape
    size = dtype.itemsize
    rate = card.fp32 if dtype == torch.float32 else card.bf16
    return Kernel("product", 2 * T * d * F, rate, (T * d + F * d + T * F) * size)


def tile_reads(shape: Shape, size: int, tile: tuple[int, int], streams: int = 1) -> int:
    """Bytes that the tiles of x @ W.T read through L2: x once per column of tiles, W once per row of them.

    About T d F size (1 / BM + 1 / BN). streams: how many x there are beside one W.
    """
    T, d, F, _ = shape
    rows, columns = -(-T // tile[0]), -(-F // tile[1])
    return (streams * T * columns + F * rows) * d * size
