"""select: the k best of each row's candidates, best first, as values and indices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends import cuda
from saekernels.backends.triton import keys
from saekernels.backends.triton.keys import Candidates
from saekernels.backends.triton.launch import launch, power_of_2

# Keys that one program sorts; torch.topk, as exact but slower, beyond.
MOST_SORTED = 2048


@triton.jit
def _best(found, row, count, KEPT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, BLOCK)
    return tl.topk(tl.load(found.keys + row * found.capacity + at, mask=at < count, other=keys.EMPTY), KEPT)


@triton.jit
def select_kernel(  # type: ignore[no-untyped-def]
    found, values, indices, k, RELU: tl.constexpr, KEPT: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    count = tl.minimum(tl.load(found.counts + row), found.capacity)
    # There is room for twice what a row has as a rule, and sorting takes more than twice as long for it.
    if KEPT >= BLOCK // 2:
        best = _best(found, row, count, KEPT, BLOCK)
    elif count <= BLOCK // 2:
        best = _best(found, row, count, KEPT, BLOCK // 2)
    else:
        best = _best(found, row, count, KEPT, BLOCK)
    place = tl.arange(0, KEPT)
    value = keys.value_of(best)
    if RELU:
        value = tl.where(value < 0, 0.0, value)  # NaN stays
    tl.store(values + row * k + place, value.to(values.dtype.element_ty), mask=place < k)
    tl.store(indices + row * k + place, keys.index_of(best), mask=place < k)


def select(found: Candidates, k: int, dtype: torch.dtype, *, relu: bool) -> tuple[Tensor, Tensor]:
    """Values [T, k] in `dtype`, rounded after ordering, and indices [T, k] int32.

    Args:
        found: at least k of each row.
        relu: negative values become 0.
    """
    rows, device = found.keys.shape[0], found.keys.device
    if device.type == "cuda" and cuda.available() is None and cuda.can_select(k, found.capacity):
        return cuda.select_candidates(found.keys, found.counts, k, dtype, relu)
    if found.capacity > MOST_SORTED:
        return _by_torch(found, k, dtype, relu)
    values = torch.empty(rows, k, dtype=dtype, device=device)
    indices = torch.empty(rows, k, dtype=torch.int32, device=device)
    block = power_of_2(found.capacity, 32)
    launch(
        select_kernel,
        (rows,),
        device,
        num_warps=max(1, min(8, block // 512)),
        found=found,
        values=values,
        indices=indices,
        k=k,
        RELU=relu,
        KEPT=power_of_2(k, 2),
        BLOCK=block,
    )
    return values, indices


def _by_torch(found: Candidates, k: int, dtype: torch.dtype, relu: bool) -> tuple[Tensor, Tensor]:
    places = torch.arange(found.capacity, device=found.keys.device)
    valid = torch.where(places < found.counts[:, None], found.keys, keys.EMPTY.value)
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
