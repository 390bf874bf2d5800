"""How fast multiprocessors read what L2 holds: the ceiling that the cost model has to assume without a card."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = 4 << 20  # 16 MiB of float32: in L2 on every card that is served, in no L1
BLOCK = 4096
TILES = 128  # by each program: what comes from device memory at first is a hundredth of all
PER_MULTIPROCESSOR = 8


@triton.jit  # type: ignore[untyped-decorator]
def read_kernel(source, sums, words, TILES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """sums [programs, BLOCK]: of TILES tiles of source [words], each program beginning at another."""
    program = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for number in range(TILES):
        start = ((program + number * tl.num_programs(0)) * BLOCK) % words
        total += tl.load(source + start + lanes, cache_modifier=".cg")
    tl.store(sums + program * BLOCK + lanes, total)


def read(source: Tensor, programs: int, tiles: int = TILES, block: int = BLOCK) -> Tensor:
    """Sums [programs, block] of what each program read of source [a multiple of block]: float32, `tiles` tiles."""
    sums = torch.empty(programs, block, device=source.device)
    read_kernel[(programs,)](source, sums, source.numel(), TILES=tiles, BLOCK=block, num_warps=8)
    return sums


def reader(device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """A call that reads from L2, and how many bytes it reads."""
    source = torch.ones(WORDS, device=device)
    programs = PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return lambda: read(source, programs), 4 * programs * TILES * BLOCK
