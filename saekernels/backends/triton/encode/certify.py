"""certify: which rows have all of their k best among their candidates; the others are listed for `exact_rows`.

A row fails when it has more candidates than room, or fewer than k. Where candidates carry only the most that their
score can be, `cut` drops those that the k-th best sure score rules out, and a row fails too when that score lies
below the screen's threshold, for then a latent that the screen dropped might belong to the k best.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import keys
from saekernels.backends.triton.encode.screen import Operands
from saekernels.backends.triton.launch import launch, power_of_2

BLOCK = 256


@triton.jit
def certify_kernel(counts, failed, n_failed, T, k, capacity, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(counts + rows, mask=rows < T, other=k)
    fails = (rows < T) & ((count < k) | (count > capacity))
    # In which order failing rows are listed decides nothing.
    place = tl.atomic_add(n_failed + rows * 0, 1, mask=fails, sem="relaxed")
    tl.store(failed + place, rows, mask=fails)


@triton.jit
def cut_kernel(  # type: ignore[no-untyped-def]
    candidates,
    counts,
    threshold,
    failed,
    n_failed,
    row_norm,
    row_error,
    latent_norm,
    latent_error,
    latent_slack,
    k,
    capacity,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    count = tl.load(counts + row)
    at = tl.arange(0, BLOCK)
    here = at < tl.minimum(count, capacity)
    entries = candidates + row.to(tl.int64) * capacity
    key = tl.load(entries + at, mask=here, other=keys.EMPTY)
    latent = tl.where(here, keys.index_of(key), 0)
    most = keys.score_of(key)
    norm = tl.load(latent_norm + latent)
    error = tl.load(latent_error + latent)
    slack = tl.load(latent_slack + latent)
    least = most - 2 * (tl.load(row_norm + row) * error + (tl.load(row_error + row) * norm + slack))
    least = tl.where(here & (least == least), least, float("-inf"))
    sure = keys.unordered(keys.rank_of(keys.ordered(least), k))
    fails = (count < k) | (count > capacity) | ~(sure >= tl.load(threshold + row))
    keep = here & ~(most < sure)
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.debug_barrier()  # every key is read before the first is overwritten
    tl.store(entries + place, key, mask=keep)
    tl.store(counts + row, tl.where(fails, 0, tl.sum(keep.to(tl.int32), 0)))
    if fails:
        tl.store(failed + tl.atomic_add(n_failed, 1, sem="relaxed"), row)


def certify(counts: Tensor, k: int, capacity: int) -> tuple[Tensor, Tensor]:
    """The rows that fail, in the front of [T] int32, and how many they are, [1] int32."""
    rows, device = counts.shape[0], counts.device
    failed = torch.empty(rows, dtype=torch.int32, device=device)
    n_failed = torch.zeros(1, dtype=torch.int32, device=device)
    launch(
        certify_kernel,
        (triton.cdiv(rows, BLOCK),),
        device,
        counts=counts,
        failed=failed,
        n_failed=n_failed,
        T=rows,
        k=k,
        capacity=capacity,
        BLOCK=BLOCK,
    )
    return failed, n_failed


def cut(candidates: Tensor, counts: Tensor, threshold: Tensor, of: Operands, k: int) -> tuple[Tensor, Tensor]:
    """`certify` for candidates [T, capacity] of a rescored screen, which are cut to those that may be among the k best.

    counts [T] become the numbers left; 0 for a row that fails.
    """
    rows, capacity = candidates.shape
    device = candidates.device
    failed = torch.empty(rows, dtype=torch.int32, device=device)
    n_failed = torch.zeros(1, dtype=torch.int32, device=device)
    block = power_of_2(capacity, 32)
    launch(
        cut_kernel,
        (rows,),
        device,
        num_warps=max(1, min(8, block // 256)),
        candidates=candidates,
        counts=counts,
        threshold=threshold,
        failed=failed,
        n_failed=n_failed,
        row_norm=of.row_norm,
        row_error=of.row_error,
        latent_norm=of.latent_norm,
        latent_error=of.latent_error,
        latent_slack=of.latent_slack,
        k=k,
        capacity=capacity,
        BLOCK=block,
    )
    return failed, n_failed
