"""What GPUs can do, for predictions where none is at hand. Measured ceilings replace these as soon as there are any."""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """Rates that a good kernel reaches, not those of the datasheet.

    Attributes:
        bf16, tf32, fp32, eight_bit: dense products, in 10^12 floating-point (or integer) operations per second.
        memory, l2: GB/s, of device memory (reads and writes together), and of what multiprocessors read through L2.
        l2_bytes: its size.
        multiprocessors, clock: how many, and their GHz under load.
        launch: seconds between two dependent kernels of a graph.
    """

    name: str
    bf16: float
    tf32: float
    fp32: float
    eight_bit: float
    memory: float
    l2: float
    l2_bytes: int
    multiprocessors: int
    clock: float
    launch: float = 2e-6

    def lane_operations(self) -> float:
        """Simple instructions per second, one per lane: 128 lanes on each multiprocessor."""
        return 128 * self.multiprocessors * self.clock * 1e9


# 79 % of the datasheet's bf16 rate and 90 % of its bandwidth, which is what large products and copies reach on an H200;
# the same shares of the others' datasheets. L2 is an assumption, after published microbenchmarks of the PCIe H100
# (https://chipsandcheese.com/p/nvidias-h100-funny-l2-and-tons-of-bandwidth) and the A100; the 780 need more than that
# themselves (docs/explanation/gpu_model.md).
CARDS = {
    "H200": Card("H200", 780, 390, 53, 1560, 4300, 5700, 60 << 20, 132, 1.75),
    "H100": Card("H100", 780, 390, 53, 1560, 3000, 5700, 50 << 20, 132, 1.75),
    "A100": Card("A100", 245, 123, 15, 490, 1800, 3600, 40 << 20, 108, 1.4),
}
