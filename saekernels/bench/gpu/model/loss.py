"""What linear_ce_kl and its gradients do; F of a shape is the vocabulary."""

from __future__ import annotations

import torch

from saekernels.bench.gpu.cards import Card
from saekernels.bench.gpu.model.kernels import Kernel, tile_reads
from saekernels.bench.measure.shapes import Shape

# Rows of h and of W_U that a tile has on sm_90 (backends/triton/configs.py), by bytes per element, whose tiles of W_U
# serve two streams.
LOSS_TILE = {2: (128, 128), 4: (128, 64)}
GRADIENT_TILE = {2: (128, 128), 4: (64, 64)}
# Tiles of words that a program of the loss takes, and words whose logits' gradients exist at a time.
PART, SLAB = 16, 4096
# Of a thread per logit and stream (tests/gpu/golden), by bytes per element: the losses, and the gradients of logits.
LOSS_EPILOGUE = {2: 11.32, 4: 13.25}
SLOPE_EPILOGUE = {2: 7.94, 4: 9.72}


def loss(shape: Shape, dtype: torch.dtype, card: Card) -> list[Kernel]:
    """linear_ce_kl; F is the vocabulary."""
    T, d, V, _ = shape
    size, tile = dtype.itemsize, LOSS_TILE[min(dtype.itemsize, 4)]
    partial = 28 * T * -(-V // (tile[1] * PART))
    moved, reads = (2 * T * d + V * d) * size + partial, tile_reads(shape, size, tile, streams=2)
    return [
        Kernel("parts", 4 * T * d * V, _head_rate(dtype, card), moved, reads, LOSS_EPILOGUE[size] * 2 * T * V),
        Kernel("merge", memory=partial + 16 * T),
    ]


def loss_train(shape: Shape, dtype: torch.dtype, card: Card) -> list[Kernel]:
    """linear_ce_kl and the gradients of both streams, W_U frozen."""
    T, d, V, _ = shape
    size, rate, slabs = dtype.itemsize, _head_rate(dtype, card), -(-V // SLAB)
    slopes = 2 * T * V * size  # of bfloat16 or float32, as the operands
    reads = slabs * tile_reads(Shape(2 * T, SLAB, d), size, GRADIENT_TILE[size])
    moved = slopes + V * d * size + slabs * 2 * 4 * 2 * T * d
    return [
        *loss(shape, dtype, card),
        Kernel("rows", memory=3 * T * d * size),
        Kernel(
            "slopes",
            4 * T * d * V,
            rate,
            slopes + (2 * T * d * slabs + V * d) * size,
            tile_reads(shape, size, LOSS_TILE[size], streams=2) + slopes,
            SLOPE_EPILOGUE[size] * 2 * T * V,
            slabs,
        ),
        Kernel("accumulate", 4 * T * d * V, rate, moved, reads, launches=slabs),
    ]


def _head_rate(dtype: torch.dtype, card: Card) -> float:
    return card.bf16 if dtype.itemsize == 2 else card.tf32 / 3
