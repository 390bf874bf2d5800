"""The cost model: each kernel's time from the operations it does and bytes it moves (docs/explanation/gpu_model.md).

A kernel takes the longest of its products, its memory traffic, its cache traffic and its instructions, plus what its
epilogue does while the tensor cores wait, plus a launch. Nothing is fitted: where a measurement misses a prediction,
one of the two is wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from saekernels.backends.triton.append_ptx import PACK
from saekernels.backends.triton.encode import sampling as screening
from saekernels.bench.gpu.cards import Card
from saekernels.bench.measure.shapes import Shape

# Instructions of a thread per score behind the product, in the machine code for sm_90 (tests/gpu/golden): of operands
# in 16 bits, in tf32 with bounds, and in 8 bits with scales and bounds.
SAMPLE_EPILOGUE = {"exact": 13.62, "tf32": 20.53, "screened": 22.59}
SCREEN_EPILOGUE = {"exact": 4.22, "tf32": 9.16, "screened": 10.81}
# More for a pack of scores of which some lane of the warp appends one.
APPEND = 56
WARP = 32
# Of a thread, in the same table: per element that the loop of a gather multiplies, by bytes per element; per latent of
# segment_sum; per key of those that a row's threshold or its codes are chosen from.
GATHERED = {
    "decode": {2: 4.72, 4: 4.81},
    "gather_dot": {2: 3.28, 4: 2.03},
    "segment_outer": {2: 3.72, 4: 3.06},
}
PER_LATENT = {2: 22.25, 4: 20.88}
RANKED, SELECTED = 121.4, 115.6
# Rows of x and of W that a tile has on sm_90 (backends/triton/configs.py): of encoders, and of the loss by bytes per
# element, whose tiles of W serve two streams.
SCREEN_TILE = (128, 128)
LOSS_TILE = {2: (128, 128), 4: (128, 64)}
GRADIENT_TILE = {2: (128, 128), 4: (64, 64)}
# Tiles of words that a program of the loss takes, and words whose logits' gradients exist at a time.
PART, SLAB = 16, 4096
# Of a thread per logit and stream, counted likewise, by bytes per element: the losses, and the gradients of logits.
LOSS_EPILOGUE = {2: 11.32, 4: 13.25}
SLOPE_EPILOGUE = {2: 7.94, 4: 9.72}
# Candidates that rescoring reads, per latent wanted: inside twice the error bound of tf32 and of 8-bit products.
RESCORED = {"exact": 3.3, "screened": 2.6}
GROWTH = {"exact": 3.7, "screened": 3.0}
NORMS = ("row_norms", "quantise")


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


def appending(share: float) -> float:
    """Instructions per score that appending costs, where a `share` of all scores, at random, is appended."""
    return APPEND / PACK * (1 - (1 - share) ** (WARP * PACK))


def tile_reads(shape: Shape, size: int, tile: tuple[int, int], streams: int = 1) -> int:
    """Bytes that the tiles of x @ W.T read through L2: x once per column of tiles, W once per row of them.

    About T d F size (1 / BM + 1 / BN). streams: how many x there are beside one W.
    """
    T, d, F, _ = shape
    rows, columns = -(-T // tile[0]), -(-F // tile[1])
    return (streams * T * columns + F * rows) * d * size


def encode(shape: Shape, dtype: torch.dtype, card: Card, precision: str = "exact") -> list[Kernel]:
    """encode_topk."""
    T, d, F, k = shape
    size = dtype.itemsize
    rescored = precision == "screened" or (precision == "exact" and dtype == torch.float32)
    rate = {4: card.tf32}.get(size, card.bf16) if precision != "screened" else card.eight_bit
    operand = 1 if precision == "screened" else size
    planned = screening.plan(F, k, GROWTH[precision] if rescored else 1.0)
    if planned is None:
        reads = tile_reads(shape, size, SCREEN_TILE)
        moved = (T * d + F * d) * size + 8 * T * F
        dense = Kernel("dense", 2 * T * d * F, card.fp32 if size == 4 else rate, moved, reads)
        return [dense, Kernel("topk", memory=3 * 4 * T * F)]
    step, rank, capacity = planned
    groups = F / step / screening.GROUP_OF
    found = rank * step * (GROWTH[precision] if rescored else 1)
    epilogue = "tf32" if rescored and precision == "exact" else precision if rescored else "exact"
    kernels = []
    if precision == "screened":
        kernels.append(Kernel("quantise", memory=F * d * (2 * size + 1) + T * d * (2 * size + 1)))
    elif rescored:
        kernels.append(Kernel("row_norms", memory=(F * d + T * d) * size))
    kernels += [
        Kernel(
            "sample",
            2 * T * d * F / step,
            rate,
            (T * d + F * d / step) * operand + 4 * T * groups,
            tile_reads(shape._replace(F=-(-F // step)), operand, SCREEN_TILE),
            lanes=SAMPLE_EPILOGUE[epilogue] * T * F / step,
        ),
        Kernel("rank", memory=4 * T * groups, lanes=RANKED * T * groups),
        Kernel(
            "screen",
            2 * T * d * F,
            rate,
            (T * d + F * d) * operand + 8 * T * found,
            tile_reads(shape, operand, SCREEN_TILE),
            lanes=(SCREEN_EPILOGUE[epilogue] + appending(found / F)) * T * F,
        ),
        Kernel("cut" if rescored else "certify", memory=16 * T * found if rescored else 4 * T),
    ]
    if rescored:
        left = RESCORED[precision] * k
        gathered = T * left * d * size
        # Row by row, so that the rows of W of one are long gone when another wants them, but for what L2 holds.
        memory = max(min(T * left, F) * d * size, gathered * (1 - min(1.0, card.l2_bytes / (F * d * size))))
        kernels.append(Kernel("rescore", 2 * T * left * d, card.fp32, memory, gathered))
    kernels.append(exact_rows(shape, dtype, card, failed=0))
    sorted_keys = 1 << (capacity - 1).bit_length()
    kernels.append(Kernel("select", memory=8 * T * found + T * k * (size + 4), lanes=SELECTED * T * sorted_keys))
    return kernels


def exact_rows(shape: Shape, dtype: torch.dtype, card: Card, failed: int) -> Kernel:
    """The rows that no screen could serve: each reads all of W, with the whole card; none as a rule."""
    _, d, F, _ = shape
    moved = failed * F * d * dtype.itemsize
    return Kernel("exact_rows", 2 * failed * F * d, card.fp32, 4 + moved, moved)


def decode(shape: Shape, dtype: torch.dtype, card: Card) -> list[Kernel]:
    """decode, or as much gathering in either direction."""
    T, d, F, k = shape
    size = dtype.itemsize
    used = F * (1 - (1 - 1 / F) ** (T * k))  # of uniformly random latents
    moved = (used * d + T * d) * size + T * k * (size + 4)
    return [Kernel("decode", memory=moved, l2=T * k * d * size, issued=GATHERED["decode"][min(size, 4)] * T * k * d)]


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
        *encode(shape, dtype, card),
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


def predict(op: str, shape: Shape, dtype: torch.dtype, card: Card, precision: str = "exact") -> list[Kernel]:
    """The kernels of an op by name."""
    if op == "encode":
        return encode(shape, dtype, card, precision)
    if op == "sae_topk":
        return encode(shape, dtype, card, precision) + decode(shape, dtype, card)
    return {"decode": decode, "sae_train": train, "loss": loss, "loss_train": loss_train}[op](shape, dtype, card)


def temporaries(shape: Shape, dtype: torch.dtype, precision: str = "exact") -> float:
    """Bytes that encode_topk allocates beside its results."""
    T, d, F, k = shape
    rescored = precision == "screened" or (precision == "exact" and dtype == torch.float32)
    planned = screening.plan(F, k, GROWTH[precision] if rescored else 1.0)
    if planned is None:
        return 64 * 2**20
    sampled = 4 * T * F / planned.step / screening.GROUP_OF
    return max(sampled, 8 * T * planned.capacity) + (F * d if precision == "screened" else 0) + 24 * (T + F)
