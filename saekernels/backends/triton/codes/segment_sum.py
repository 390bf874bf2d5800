"""segment_sum: the gradient of a bias of latents, each the sum of the values of its entries."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton.codes.segments import by_latent
from saekernels.backends.triton.launch import launch

# Latents that a program sums side by side, SHORT entries of each at a time; those of more than LONG entries one after
# another, BLOCK at a time.
LATENTS, SHORT, LONG, BLOCK = 8, 16, 256, 128


@triton.jit
def _load(values, order, at, here):  # type: ignore[no-untyped-def]
    entry = tl.load(order + at, mask=here, other=0).to(tl.uint32).to(tl.int64)
    return tl.load(values + entry, mask=here, other=0.0).to(tl.float32)


@triton.jit
def segment_sum_kernel(  # type: ignore[no-untyped-def]
    values,
    order,
    starts,
    out,
    F,
    LATENTS: tl.constexpr,
    SHORT: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0) * LATENTS
    latent = tile + tl.arange(0, LATENTS)
    begin = tl.load(starts + latent, mask=latent < F, other=0)
    count = (tl.load(starts + latent + 1, mask=latent < F, other=0) - begin).to(tl.int32)
    # A latent's way, and so the bits of its sum, hang on its own entries alone.
    few = tl.where(count <= LONG, count, 0)
    sums = tl.zeros((LATENTS, SHORT), tl.float32)
    for start in range(0, tl.max(few, 0), SHORT):
        at = start + tl.arange(0, SHORT)[None, :]
        sums += _load(values, order, begin[:, None] + at, at < few[:, None])
    tl.store(out + latent, tl.sum(sums, 1).to(out.dtype.element_ty), mask=(latent < F) & (count <= LONG))
    if tl.max(count, 0) > LONG:
        for one in range(tile, tl.minimum(tile + LATENTS, F)):
            first = tl.load(starts + one)
            end = tl.load(starts + one + 1)
            if end - first > LONG:
                acc = tl.zeros((BLOCK,), tl.float32)
                for block in range(first, end, BLOCK):
                    place = block + tl.arange(0, BLOCK)
                    acc += _load(values, order, place, place < end)
                tl.store(out + one, tl.sum(acc, 0).to(out.dtype.element_ty))


def segment_sum(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    """[F]: the sum of the values of each latent's entries, in float32 in one fixed order."""
    order, starts = by_latent(indices, n_latents)
    out = torch.empty(n_latents, dtype=values.dtype, device=values.device)
    launch(
        segment_sum_kernel,
        (triton.cdiv(n_latents, LATENTS),),
        values.device,
        num_warps=1,
        values=values.contiguous(),
        order=order,
        starts=starts,
        out=out,
        F=n_latents,
        LATENTS=LATENTS,
        SHORT=SHORT,
        LONG=LONG,
        BLOCK=BLOCK,
    )
    return out
