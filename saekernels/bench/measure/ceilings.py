"""What this machine reaches at best, measured: the ceilings that times are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from saekernels.bench.measure.contenders import Work

# Three matrices of this size fit in the caches of one or two cores, so that memory does not count.
_SQUARE = 512
_SECONDS = 0.3
_COPY_BYTES = 256 << 20


class Roofs(NamedTuple):
    """GFLOP/s of torch.mm on cache-resident matrices, by dtype; GB/s of copying (reads and writes) and of reading.

    int8_gops: 10^9 additions and multiplications a second of an int8 product; None where torch has none, or in records
    from before it was measured.
    """

    float32_gflops: float
    bfloat16_gflops: float
    copy_gbs: float
    read_gbs: float
    int8_gops: float | None = None

    def best_of(self, other: Roofs) -> Roofs:
        """The larger of each: a busy machine measures its ceilings too low."""
        int8 = max(self.int8_gops or 0.0, other.int8_gops or 0.0)
        return Roofs._make((*map(max, self[:4], other[:4]), int8 or None))

    def seconds(self, work: Work, dtype: str) -> float:
        """The least time that `work` can take here: the larger of arithmetic and memory traffic.

        bf16 is held against the faster of the two products, because its values can always be widened.
        """
        gflops = self.float32_gflops
        if dtype == "bfloat16":
            gflops = max(gflops, self.bfloat16_gflops)
        return max(work.flops / gflops, work.bytes / max(self.copy_gbs, self.read_gbs)) / 1e9

    def shares(self, work: Work, seconds: float) -> dict[str, float]:
        """What doing `work` in so long makes of each ceiling alone: above 1 where it is not the one that counts."""
        rates = {"float32": self.float32_gflops, "bfloat16": self.bfloat16_gflops, "int8": self.int8_gops}
        found = {name: work.flops / rate / seconds / 1e9 for name, rate in rates.items() if rate}
        return {**found, "read": work.bytes / self.read_gbs / seconds / 1e9}


def measure(quick: bool = False) -> Roofs:
    """With the present number of threads; about two seconds, or less and rougher if `quick`.

    Where the products of one thread, times the number of threads, are faster than those of all, that is the ceiling:
    beside other processes OpenMP threads wait for each other, which a kernel need not do.
    """
    seconds = _SECONDS / 10 if quick else _SECONDS
    flops = 2 * _SQUARE**3
    numbers = (_COPY_BYTES // (8 if quick else 1)) // 4
    source, target = torch.ones(numbers), torch.zeros(numbers)
    return Roofs(
        flops / _best_product(torch.float32, seconds) / 1e9,
        flops / _best_product(torch.bfloat16, seconds) / 1e9,
        2 * 4 * numbers / _best(lambda: target.copy_(source), seconds) / 1e9,
        4 * numbers / _best(source.sum, seconds) / 1e9,
        None if integer_product() is None else flops / _best_product(torch.int8, seconds) / 1e9,
    )


def _best_product(dtype: torch.dtype, seconds: float) -> float:
    threads = torch.get_num_threads()
    together = _best(_product(dtype), seconds)
    torch.set_num_threads(1)
    try:
        return min(together, _best(_product(dtype), seconds) / threads)
    finally:
        torch.set_num_threads(threads)


def _product(dtype: torch.dtype) -> Callable[[], object]:
    square = torch.ones(_SQUARE, _SQUARE, dtype=dtype)
    if dtype == torch.int8:
        sums, multiply = torch.empty(_SQUARE, _SQUARE, dtype=torch.int32), integer_product()
        assert multiply is not None, "asked for where there is one"
        return lambda: multiply(square, square, out=sums)
    out = torch.empty_like(square)
    return lambda: torch.mm(square, square, out=out)


def integer_product() -> Callable[..., object] | None:
    """int8 matrices to int32, as torch's own quantised layers multiply; None where this torch cannot."""
    found: Callable[..., object] | None = getattr(torch, "_int_mm", None)
    one = torch.ones(32, 32, dtype=torch.int8)
    try:
        if found is not None:
            found(one, one)
    except RuntimeError:
        return None
    return found


def _best(call: Callable[[], object], seconds: float) -> float:
    """The fastest of calls over so many seconds: a ceiling is what was reached once."""
    call()
    end, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
