"""The cost model of the warp-specialised screen on Hopper, which no row of the table asks for yet."""

from __future__ import annotations

import torch

from saekernels.backends.triton.configs import Ring
from saekernels.bench.gpu import model
from saekernels.bench.gpu.cards import Card
from saekernels.bench.measure.shapes import Shape

# Instructions per score and more for a pack with a hit, by `Ring.parts`: as `model.SCREEN_EPILOGUE`, `model.APPEND`.
EPILOGUE = {1: 4.05, 2: 4.47}
APPEND = {1: 53, 2: 59}


def encode_seconds(shape: Shape, card: Card, ring: Ring | None) -> float:
    """The predicted time of encode_topk in bf16 with this screen; None: with the portable one."""
    kernels = model.encode(shape, torch.bfloat16, card)
    if ring is None:
        return model.seconds(kernels, card)
    others = [kernel for kernel in kernels if kernel.name != "screen"]
    return model.seconds(others, card) + sum(
        screen_seconds(kernel, shape, card, ring) for kernel in kernels if kernel.name == "screen"
    )


def screen_seconds(portable: model.Kernel, shape: Shape, card: Card, ring: Ring) -> float:
    """Of the screen alone.

    In ping-pong one warpgroup's epilogue runs beside the other's product, and counts where it takes longer; where both
    share a tile nothing is assumed to.
    """
    T, d, F, _ = shape
    # The candidates that the portable one writes, of 8 bytes each.
    share = (portable.memory - 2 * (T * d + F * d)) / 8 / (T * F)
    hits = model.appending(share) * APPEND[ring.parts] / model.APPEND
    epilogue = (EPILOGUE[ring.parts] + hits) * T * F / card.lane_operations()
    reads = model.tile_reads(shape, 2, (ring.BM, ring.BN))
    product = portable._replace(l2=reads, lanes=0).seconds(card)
    return max(product, epilogue + card.launch) if ring.parts == 1 else product + epilogue
