"""certify: which rows have all of their k best among their candidates; the others are listed for `exact_rows`.

A row fails when it has more candidates than room, or fewer than k. Where candidates carry only the most that their
score can be, `cut` drops those that the k-th best sure score rules out, and a row fails too when that score lies
below the screen's threshold, for then a latent that the screen dropped might belong to the k best.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import keys
from saekernels.backends.triton.encode.failed import Failed, none_yet
from saekernels.backends.triton.encode.operands import Vectors
from saekernels.backends.triton.keys import Candidates
from saekernels.backends.triton.launch import launch, power_of_2

BLOCK = 256


@triton.jit
def certify_kernel(counts, failed, T, k, capacity, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(counts + rows, mask=rows < T, other=k)
    fails = (rows < T) & ((count < k) | (count > capacity))
    place = tl.atomic_add(failed.number + rows * 0, 1, mask=fails, sem="relaxed")
    tl.store(failed.rows + place, rows, mask=fails)


@triton.jit
def cut_kernel(found, threshold, failed, vectors, k, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    count = tl.load(found.counts + row)
    at = tl.arange(0, BLOCK)
    here = at < tl.minimum(count, found.capacity)
    entries = found.keys + row.to(tl.int64) * found.capacity
    key = tl.load(entries + at, mask=here, other=keys.EMPTY)
    latent = tl.where(here, keys.index_of(key), 0)
    most = keys.score_of(key)
    norm = tl.load(vectors.latent_norm + latent)
    error = tl.load(vectors.latent_error + latent)
    slack = tl.load(vectors.latent_slack + latent)
    least = most - 2 * (tl.load(vectors.row_norm + row) * error + (tl.load(vectors.row_error + row) * norm + slack))
    least = tl.where(here & (least == least), least, float("-inf"))
    sure = keys.unordered(keys.rank_of(keys.ordered(least), k))
    fails = (count < k) | (count > found.capacity) | ~(sure >= tl.load(threshold + row))
    keep = here & ~(most < sure)
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.debug_barrier()  # every key is read before the first is overwritten
    tl.store(entries + place, key, mask=keep)
    tl.store(found.counts + row, tl.where(fails, 0, tl.sum(keep.to(tl.int32), 0)))
    if fails:
        tl.store(failed.rows + tl.atomic_add(failed.number, 1, sem="relaxed"), row)


def certify(found: Candidates, k: int) -> Failed:
    """The rows that fail."""
    rows, device = found.keys.shape[0], found.keys.device
    failed = none_yet(rows, device)
    launch(
        certify_kernel,
        (triton.cdiv(rows, BLOCK),),
        device,
        counts=found.counts,
        failed=failed,
        T=rows,
        k=k,
        capacity=found.capacity,
        BLOCK=BLOCK,
    )
    return failed


def cut(found: Candidates, threshold: Tensor, vectors: Vectors, k: int) -> Failed:
    """`certify` for the candidates of a rescored screen, which are cut to those that may be among the k best.

    Their counts become the numbers left; 0 for a row that fails.
    """
    rows, device = found.keys.shape[0], found.keys.device
    failed = none_yet(rows, device)
    block = power_of_2(found.capacity, 32)
    launch(
        cut_kernel,
        (rows,),
        device,
        num_warps=max(1, min(8, block // 256)),
        found=found,
        threshold=threshold,
        failed=failed,
        vectors=vectors.of_reach(),
        k=k,
        BLOCK=block,
    )
    return failed
