"""What is done with codes: decoding, and the gradients of an SAE."""

from __future__ import annotations

import torch

from saekernels.bench.gpu.cards import Card
from saekernels.bench.gpu.model.encode import encode
from saekernels.bench.gpu.model.kernels import Kernel
from saekernels.bench.measure.shapes import Shape
from saekernels.bench.ops.gather_matmul import VECTORS

# Instructions of a thread in the machine code for sm_90 (tests/gpu/golden): per element that the loop of a gather
# multiplies, by bytes per element; per latent of segment_sum.
GATHERED = {
    "decode": {2: 4.72, 4: 4.81},
    "gather_dot": {2: 3.28, 4: 2.03},
    "segment_outer": {2: 3.72, 4: 3.06},
}
GATHER_TILE = (64, 32)  # vectors and entries of a program of gather_matmul (backends/triton/configs.py)
PER_LATENT = {2: 22.25, 4: 20.88}


def decode(shape: Shape, dtype: torch.dtype, card: Card) -> list[Kernel]:
    """decode, or as much gathering in either direction."""
    T, d, F, k = shape
    size = dtype.itemsize
    used = F * (1 - (1 - 1 / F) ** (T * k))  # of uniformly random latents
    moved = (used * d + T * d) * size + T * k * (size + 4)
    return [Kernel("decode", memory=moved, l2=T * k * d * size, issued=GATHERED["decode"][min(size, 4)] * T * k * d)]


def gather_matmul(shape: Shape, dtype: torch.dtype, card: Card) -> list[Kernel]:
    """gather_matmul of VECTORS vectors at each row: whole tiles are multiplied, those that lap over too."""
    T, d, F, k = shape
    size = dtype.itemsize
    blocks, parts = -(-VECTORS // GATHER_TILE[0]), -(-k // GATHER_TILE[1])
    used = F * (1 - (1 - 1 / F) ** (T * k))
    moved = (used * d + VECTORS * T * d + VECTORS * T * k) * size + 4 * T * k
    read = (blocks * T * k + parts * VECTORS * T) * d * size
    rate = card.fp32 if dtype == torch.float32 else card.bf16
    flops = 2 * T * d * blocks * GATHER_TILE[0] * parts * GATHER_TILE[1]
    return [Kernel("gather_matmul", flops, rate, moved, read)]


def train(shape: Shape, dtype: torch.dtype, card: Card) -> list[Kernel]:
    """Forward and backward of a TopK SAE: gradients of both matrices and biases as dense tensors."""
    T, d, F, k = shape
    size = dtype.itemsize
    gathered = {name: per[min(size, 4)] * T * k * d for name, per in GATHERED.items()}
    back = decode(shape, dtype, card)[0]._replace(name="decode of the gradient")
    gather = back._replace(name="gather_dot", issued=gathered["gather_dot"])
    group = Kernel("group_by_latent", memory=3 * 16 * T * k)
    moved = (T * d + F * d) * size + 16 * T * k
    outer = Kernel("segment_outer", memory=moved, l2=T * k * d * size, issued=gathered["segment_outer"])
    sums = Kernel("segment_sum", memory=12 * T * k + F * size, issued=32 * PER_LATENT[min(size, 4)] * F)
    return [
        *encode(shape, dtype, card, centred=True),
        *decode(shape, dtype, card),
        gather,
        back,
        group,
        outer,
        group,
        outer,
        group,
        sums,
    ]
