"""What the encoders do, and what of it depends on W_enc alone, which prepared weights leave out."""

from __future__ import annotations

import torch

from saekernels.backends.triton.append_ptx import PACK
from saekernels.backends.triton.encode import sampling as screening
from saekernels.bench.gpu.cards import Card
from saekernels.bench.gpu.model.kernels import Kernel, tile_reads
from saekernels.bench.measure.shapes import Shape

# Instructions of a thread per score behind the product, in the machine code for sm_90 (tests/gpu/golden): of operands
# in 16 bits, in tf32 with bounds, and in 8 bits with scales and bounds.
SAMPLE_EPILOGUE = {"exact": 13.62, "tf32": 20.53, "screened": 22.59}
SCREEN_EPILOGUE = {"exact": 4.22, "tf32": 9.16, "screened": 10.81}
# More for a pack of scores of which some lane of the warp appends one.
APPEND = 56
WARP = 32
# Of a thread, in the same table: per key of those that a row's threshold or its codes are chosen from.
RANKED, SELECTED = 121.4, 115.6
# Rows of x and of W that a tile has on sm_90 (backends/triton/configs.py).
SCREEN_TILE = (128, 128)
# Candidates that rescoring reads, per latent wanted: inside twice the error bound of tf32 and of 8-bit products.
RESCORED = {"exact": 3.3, "screened": 2.6}
GROWTH = {"exact": 3.7, "screened": 3.0}
# Elements of W_enc that a use of prepared weights looks at, and what each brings along.
SAMPLES, SECTOR = 4096, 32


def appending(share: float) -> float:
    """Instructions per score that appending costs, where a `share` of all scores, at random, is appended."""
    return APPEND / PACK * (1 - (1 - share) ** (WARP * PACK))


def encode(
    shape: Shape,
    dtype: torch.dtype,
    card: Card,
    precision: str = "exact",
    *,
    prepared: bool = False,
    centred: bool = False,
) -> list[Kernel]:
    """encode_topk, of prepared weights or not; centred: with a pre_bias."""
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
        first = readying(shape, dtype, precision, prepared=prepared, centred=centred)
        return [*first, dense, Kernel("topk", memory=3 * 4 * T * F)]
    step, rank, capacity = planned
    groups = F / step / screening.GROUP_OF
    found = rank * step * (GROWTH[precision] if rescored else 1)
    epilogue = "tf32" if rescored and precision == "exact" else precision if rescored else "exact"
    kernels = readying(shape, dtype, precision, prepared=prepared, centred=centred)
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


def readying(shape: Shape, dtype: torch.dtype, precision: str, *, prepared: bool, centred: bool) -> list[Kernel]:
    """What comes before the first product: of W_enc and x, or of x alone and a look at W_enc."""
    T, d, F, _ = shape
    size, wide = dtype.itemsize, dtype == torch.float32
    kernels, of_weights = [], []
    if centred and wide:
        kernels.append(Kernel("centre", memory=2 * T * d * size))
    elif centred:
        of_weights.append(Kernel("fold", memory=F * d * size + 4 * F))
    if precision == "screened":
        kernels.append(Kernel("quantise", memory=T * d * (2 * size + 1)))
        of_weights.append(Kernel("quantise W", memory=F * d * (2 * size + 1)))
    elif precision == "exact" and wide:
        kernels.append(Kernel("row_norms", memory=T * d * size))
        of_weights.append(Kernel("latent_norms", memory=F * d * size))
    if not prepared or not of_weights:
        return kernels + of_weights
    look = Kernel("look", memory=SECTOR * SAMPLES + (size + 4) * d)
    # What would make them anew reads one number and ends; a bias is added to what is folded.
    return [*kernels, look, *(kernel._replace(memory=12 * F if kernel.name == "fold" else 4) for kernel in of_weights)]


def exact_rows(shape: Shape, dtype: torch.dtype, card: Card, failed: int) -> Kernel:
    """The rows that no screen could serve: each reads all of W, with the whole card; none as a rule."""
    _, d, F, _ = shape
    moved = failed * F * d * dtype.itemsize
    return Kernel("exact_rows", 2 * failed * F * d, card.fp32, 4 + moved, moved)


def temporaries(shape: Shape, dtype: torch.dtype, precision: str = "exact") -> float:
    """Bytes that encode_topk allocates beside its results."""
    T, d, F, k = shape
    rescored = precision == "screened" or (precision == "exact" and dtype == torch.float32)
    planned = screening.plan(F, k, GROWTH[precision] if rescored else 1.0)
    if planned is None:
        return 64 * 2**20
    sampled = 4 * T * F / planned.step / screening.GROUP_OF
    return max(sampled, 8 * T * planned.capacity) + (F * d if precision == "screened" else 0) + 24 * (T + F)
