"""The machines that a plan can be for: a GPU's card, or this CPU, measured."""

from __future__ import annotations

from typing import NamedTuple

import torch

from saekernels.backends import registry
from saekernels.bench.gpu.cards import CARDS, Card
from saekernels.bench.measure.ceilings import measure


class Machine(NamedTuple):
    """What one process computes on.

    Attributes:
        card: its rates.
        bytes: its memory.
        link: GB/s that a process receives from others, in each direction.
        fp64: dense products, 10^12 operations per second.
        gpu: whether the kernels are those for GPUs.
    """

    card: Card
    bytes: float
    link: float
    fp64: float
    gpu: bool = True

    def rate(self, dtype: torch.dtype) -> float:
        """Of dense products, in operations per second."""
        card = self.card
        return 1e12 * (card.bf16 if dtype.itemsize == 2 else self.fp64 if dtype == torch.float64 else card.fp32)


# Memory, NVLink in one direction and fp64 products of the datasheets (SXM), the last two at the cards' 79 to 90 %.
GPUS = {
    "H200": Machine(CARDS["H200"], 141e9, 400, 53),
    "H100": Machine(CARDS["H100"], 80e9, 400, 53),
    "A100": Machine(CARDS["A100"], 80e9, 250, 15),
}
# gloo between processes of one machine.
_LOCAL_LINK = 1.5


def here() -> Machine:
    """This machine's CPU with the present number of threads; measures its ceilings for about two seconds."""
    roofs = measure()
    float32 = roofs.float32_gflops / 1e3
    bfloat16 = max(roofs.bfloat16_gflops / 1e3, float32)
    backend = registry.load("cpu")
    # What encoders of float32 screen in.
    screen = bfloat16 if backend.available() is None and backend.screening() != "fp32" else float32
    card = Card(
        name=f"this CPU, {torch.get_num_threads()} threads",
        bf16=bfloat16,
        tf32=screen,
        fp32=float32,
        eight_bit=float32,
        memory=max(roofs.copy_gbs, roofs.read_gbs),
        l2=max(roofs.copy_gbs, roofs.read_gbs),
        l2_bytes=0,
        multiprocessors=1,
        clock=1.0,
        launch=0.0,
    )
    return Machine(card, float("inf"), _LOCAL_LINK, float32 / 2, gpu=False)
