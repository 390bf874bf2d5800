"""rescore: the candidates that a screen left, scored in float32 in one fixed order: a gather of rows of W_enc."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs, keys
from saekernels.backends.triton.launch import architecture, launch


@triton.jit
def rescore_kernel(  # type: ignore[no-untyped-def]
    x,
    W,
    bias,
    candidates,
    counts,
    D,
    stride_xt,
    stride_xd,
    stride_wf,
    stride_wd,
    capacity,
    BIASED: tl.constexpr,
    ABS: tl.constexpr,
    ENTRIES: tl.constexpr,
    BD: tl.constexpr,
):
    row = tl.program_id(0)
    at = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    here = at < tl.load(counts + row)
    if tl.program_id(1) * ENTRIES < tl.load(counts + row):
        entries = candidates + row.to(tl.int64) * capacity + at
        latent = tl.where(here, keys.index_of(tl.load(entries, mask=here, other=keys.EMPTY)), 0)
        x_row = x + row.to(tl.int64) * stride_xt
        W_rows = W + latent.to(tl.int64)[:, None] * stride_wf
        acc = tl.zeros((ENTRIES, BD), tl.float32)
        for start in range(0, D, BD):
            column = start + tl.arange(0, BD)
            a = tl.load(x_row + column * stride_xd, mask=column < D, other=0.0).to(tl.float32)
            b = tl.load(W_rows + column[None, :] * stride_wd, mask=here[:, None] & (column < D)[None, :], other=0.0)
            acc += a[None, :] * b.to(tl.float32)
        score = tl.sum(acc, 1)
        if BIASED:
            score += tl.load(bias + latent)
        negative = (score < 0) & ABS
        if ABS:
            score = tl.abs(score)
        tl.store(entries, keys.pack(score, latent, negative), mask=here)


def rescore(
    x: Tensor, W: Tensor, bias: Tensor | None, candidates: Tensor, counts: Tensor, *, absolute: bool = False
) -> None:
    """Replace the scores in the first counts[t] keys of each row of candidates [T, capacity]: <x[t], W[latent]> + bias.

    Args:
        x: [T, d]; W: [F, d]; any float dtypes; bias: [F] float32 or None.
    """
    rows, capacity = candidates.shape
    config = configs.lookup("gather_dot", architecture(x.device), W.dtype, W.shape[1])
    launch(
        rescore_kernel,
        (rows, triton.cdiv(capacity, config.BK)),
        x.device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        x=x,
        W=W,
        bias=bias,
        candidates=candidates,
        counts=counts,
        D=x.shape[1],
        stride_xt=x.stride(0),
        stride_xd=x.stride(1),
        stride_wf=W.stride(0),
        stride_wd=W.stride(1),
        capacity=capacity,
        BIASED=bias is not None,
        ABS=absolute,
        ENTRIES=config.BK,
        BD=config.BN,
    )
