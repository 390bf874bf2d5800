"""gather_dot: one dot product per entry of the codes, a row of `a` with a row of W."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.codes.segments import rows_of
from saekernels.backends.triton.launch import architecture, launch


@triton.jit
def gather_dot_kernel(  # type: ignore[no-untyped-def]
    a,
    W,
    indices,
    rows,
    out,
    count,
    D,
    stride_at,
    stride_ad,
    stride_wf,
    stride_wd,
    BD: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    there = entry < count
    row = tl.load(rows + entry, mask=there, other=0).to(tl.int64)
    latent = tl.load(indices + entry, mask=there, other=0).to(tl.int64)
    acc = tl.zeros((ENTRIES, BD), tl.float32)
    for start in range(0, D, BD):
        column = start + tl.arange(0, BD)
        wanted = there[:, None] & (column < D)[None, :]
        left = tl.load(a + row[:, None] * stride_at + column[None, :] * stride_ad, mask=wanted, other=0.0)
        right = tl.load(W + latent[:, None] * stride_wf + column[None, :] * stride_wd, mask=wanted, other=0.0)
        acc += left.to(tl.float32) * right.to(tl.float32)
    tl.store(out + entry, tl.sum(acc, 1).to(out.dtype.element_ty), mask=there)


def gather_dot(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[nnz] in a's dtype or `dtype`: out[e] = <a[row of e], W[indices[e]]>, summed in float32 in one fixed order."""
    count = indices.shape[0]
    config = configs.lookup("gather_dot", architecture(a.device), a.dtype, a.shape[1])
    out = torch.empty(count, dtype=dtype or a.dtype, device=a.device)
    launch(
        gather_dot_kernel,
        (triton.cdiv(count, config.BK),),
        a.device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        a=a,
        W=W,
        indices=indices.contiguous(),
        rows=rows_of(offsets, count),
        out=out,
        count=count,
        D=a.shape[1],
        stride_at=a.stride(0),
        stride_ad=a.stride(1),
        stride_wf=W.stride(0),
        stride_wd=W.stride(1),
        BD=config.BN,
        ENTRIES=config.BK,
    )
    return out
