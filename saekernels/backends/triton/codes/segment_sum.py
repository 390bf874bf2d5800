"""segment_sum: the gradient of a bias of latents, each the sum of the values of its entries."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton.codes.segments import segments
from saekernels.backends.triton.launch import launch

BLOCK = 128


@triton.jit
def segment_sum_kernel(values, order, starts, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    latent = tl.program_id(0).to(tl.int64)
    end = tl.load(starts + latent + 1)
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.load(starts + latent), end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        entry = tl.load(order + at, mask=at < end, other=0).to(tl.int64)
        acc += tl.load(values + entry, mask=at < end, other=0.0).to(tl.float32)
    tl.store(out + latent, tl.sum(acc, 0).to(out.dtype.element_ty))


def segment_sum(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    """[F]: the sum of the values of each latent's entries, in float32 in one fixed order."""
    grouped = segments(indices, n_latents)
    out = torch.empty(n_latents, dtype=values.dtype, device=values.device)
    launch(
        segment_sum_kernel,
        (n_latents,),
        values.device,
        num_warps=1,
        values=values.contiguous(),
        order=grouped.order,
        starts=grouped.starts,
        out=out,
        BLOCK=BLOCK,
    )
    return out
