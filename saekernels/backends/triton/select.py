"""select: the k best of each row's candidates, best first, as values and indices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends import cuda
from saekernels.backends.triton import keys
from saekernels.backends.triton.launch import launch, power_of_2

# Keys that one program sorts; torch.topk, as exact but slower, beyond.
MOST_SORTED = 2048


@triton.jit
def select_kernel(  # type: ignore[no-untyped-def]
    candidates,
    counts,
    values,
    indices,
    k,
    capacity,
    RELU: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    here = at < tl.minimum(tl.load(counts + row), capacity)
    best = tl.topk(tl.load(candidates + row * capacity + at, mask=here, other=keys.EMPTY), KEPT)
    place = tl.arange(0, KEPT)
    value = keys.value_of(best)
    if RELU:
        value = tl.where(value < 0, 0.0, value)  # NaN stays
    tl.store(values + row * k + place, value.to(values.dtype.element_ty), mask=place < k)
    tl.store(indices + row * k + place, keys.index_of(best), mask=place < k)


def select(candidates: Tensor, counts: Tensor, k: int, dtype: torch.dtype, *, relu: bool) -> tuple[Tensor, Tensor]:
    """Values [T, k] in `dtype`, rounded after ordering, and indices [T, k] int32.

    Args:
        candidates: [T, capacity] int64 keys of which the first min(counts[t], capacity), at least k, are looked at.
        relu: negative values become 0.
    """
    rows, capacity = candidates.shape
    device = candidates.device
    if device.type == "cuda" and cuda.available() is None and cuda.can_select(k, capacity):
        return cuda.select_candidates(candidates, counts, k, dtype, relu)
    if capacity > MOST_SORTED:
        return _by_torch(candidates, counts, k, dtype, relu)
    values = torch.empty(rows, k, dtype=dtype, device=device)
    indices = torch.empty(rows, k, dtype=torch.int32, device=device)
    block = power_of_2(capacity, 32)
    launch(
        select_kernel,
        (rows,),
        device,
        num_warps=max(1, min(8, block // 256)),
        candidates=candidates,
        counts=counts,
        values=values,
        indices=indices,
        k=k,
        capacity=capacity,
        RELU=relu,
        KEPT=power_of_2(k, 2),
        BLOCK=block,
    )
    return values, indices


def _by_torch(candidates: Tensor, counts: Tensor, k: int, dtype: torch.dtype, relu: bool) -> tuple[Tensor, Tensor]:
    places = torch.arange(candidates.shape[1], device=candidates.device)
    valid = torch.where(places < counts[:, None], candidates, keys.EMPTY.value)
    return unpack(valid.topk(k, dim=1).values, dtype, relu)  # keys are unique, so ties cannot be


def unpack(best: Tensor, dtype: torch.dtype, relu: bool) -> tuple[Tensor, Tensor]:
    """`keys.value_of` and `keys.index_of` in torch, for keys of any shape."""
    order = (best >> 32).int()
    bits = order ^ ((order >> 31) & 0x7FFFFFFF)
    values = torch.where(order == 0x7FFFFFFF, torch.nan, bits.view(torch.float32))
    values = torch.where((best & 1) != 0, -values, values)
    if relu:
        values = torch.where(values < 0, 0.0, values)
    return values.to(dtype), (0x7FFFFFFF - ((best & 0xFFFFFFFF) >> 1)).int()
