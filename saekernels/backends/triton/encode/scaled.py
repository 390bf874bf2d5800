"""scaled: selection by scores times the encoder's scale, which returns the scores themselves, bit for bit.

Above thresholds the scale is one of the thresholds' matters: what a product of two floats has to exceed is what its
first factor has to, some float for each latent (`limits_of`). Among the k best, scores are candidates' values, beside
keys of the products that order them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import keys
from saekernels.backends.triton.keys import Candidates
from saekernels.backends.triton.launch import launch

BLOCK = 128


def limits_of(threshold: Tensor, factor: Tensor) -> Tensor:
    """[F]: the largest scores whose products with factor [F] > 0, rounded, do not exceed threshold [F]; all float32.

    A product rounds to no more than the threshold where it lies below the middle between that and the next float, or
    on it if the threshold is even. In float64 products and the middle are exact.
    """
    above = torch.nextafter(threshold, threshold.new_tensor(torch.inf))
    # Infinity stands where the next power of two would.
    middle = sum(end.double().clamp(-(2.0**128), 2.0**128) for end in (threshold, above)) / 2
    even, wide = (threshold.view(torch.int32) & 1) == 0, factor.double()
    guess = (middle / wide).float()
    below = guess.nextafter(guess.new_tensor(-torch.inf))
    product = guess.double() * wide
    found = torch.where((product < middle) | ((product == middle) & even), guess, below)
    return torch.where(threshold < torch.inf, found, threshold)


@triton.jit
def scale_kernel(found, factor, ABS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    count = tl.minimum(tl.load(found.counts + row), found.capacity)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        here, place = at < count, row * found.capacity + at
        key = tl.load(found.keys + place, mask=here, other=keys.EMPTY)
        latent, value = tl.where(here, keys.index_of(key), 0), keys.value_of(key)
        score = value * tl.load(factor + latent)
        negative = (score < 0) & ABS
        if ABS:
            score = tl.abs(score)
        tl.store(found.scores + place, value, mask=here)
        tl.store(found.keys + place, keys.pack(score, latent, negative), mask=here)


@triton.jit
def value_kernel(  # type: ignore[no-untyped-def]
    found, indices, values, k, RELU: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    count = tl.minimum(tl.load(found.counts + row), found.capacity)
    for first in range(0, k, GROUP):
        at = first + tl.arange(0, GROUP)
        latent = tl.load(indices + row * k + at, mask=at < k, other=-1)
        value = tl.zeros((GROUP,), tl.float32)
        for start in range(0, count, BLOCK):
            other = start + tl.arange(0, BLOCK)
            here, place = other < count, row * found.capacity + other
            index = keys.index_of(tl.load(found.keys + place, mask=here, other=keys.EMPTY))
            each = tl.load(found.scores + place, mask=here, other=0.0)
            value += tl.sum(tl.where(index[None, :] == latent[:, None], each[None, :], 0.0), 1)  # one of them
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # NaN stays
        tl.store(values + row * k + at, value.to(values.dtype.element_ty), mask=at < k)


def scale_keys(found: Candidates, factor: Tensor, *, absolute: bool) -> None:
    """Candidates' scores become their values, and their keys those of scores times factor [F]."""
    rows, device = found.keys.shape[0], found.keys.device
    launch(scale_kernel, (rows,), device, num_warps=1, found=found, factor=factor, ABS=absolute, BLOCK=BLOCK)


def values_of(found: Candidates, indices: Tensor, dtype: torch.dtype, *, relu: bool) -> Tensor:
    """[T, k] in `dtype`: the values of candidates, by their indices [T, k]; with `relu` negative ones become 0."""
    rows, k = indices.shape
    values = torch.empty(rows, k, dtype=dtype, device=indices.device)
    launch(
        value_kernel,
        (rows,),
        indices.device,
        num_warps=4,
        found=found,
        indices=indices,
        values=values,
        k=k,
        RELU=relu,
        GROUP=32,
        BLOCK=BLOCK,
    )
    return values
