"""exact_rows: the k best of the rows that no screen could certify, from all of their scores, without asking the host.

Every program asks how many rows failed, which is none as a rule, and is done. Else a row is shared by several
programs: each goes through its part of the latents in float32, in a fixed order, and leaves its own k best where the
row's candidates were.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import keys
from saekernels.backends.triton.encode import sampling as plan
from saekernels.backends.triton.launch import launch, multiprocessors

# A score tile of a program, in elements of the product.
TILE = 2048


@triton.jit
def exact_rows_kernel(  # type: ignore[no-untyped-def]
    x,
    W,
    bias,
    failed,
    n_failed,
    candidates,
    counts,
    F,
    D,
    stride_xt,
    stride_xd,
    stride_wf,
    stride_wd,
    capacity,
    parts,
    BIASED: tl.constexpr,
    ABS: tl.constexpr,
    KEPT: tl.constexpr,
    BD: tl.constexpr,
):
    items = tl.load(n_failed) * parts
    each = tl.cdiv(tl.cdiv(F, KEPT), parts) * KEPT
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        row = tl.load(failed + item // parts).to(tl.int64)
        part = item % parts
        best = tl.full((KEPT,), keys.EMPTY, tl.int64)
        for first in range(part * each, tl.minimum((part + 1) * each, F), KEPT):
            latent = first + tl.arange(0, KEPT)
            acc = tl.zeros((KEPT, BD), tl.float32)
            for start in range(0, D, BD):
                column = start + tl.arange(0, BD)
                a = tl.load(x + row * stride_xt + column * stride_xd, mask=column < D, other=0.0).to(tl.float32)
                place = latent.to(tl.int64)[:, None] * stride_wf + column[None, :] * stride_wd
                b = tl.load(W + place, mask=(latent < F)[:, None] & (column < D)[None, :], other=0.0)
                acc += a[None, :] * b.to(tl.float32)
            score = tl.sum(acc, 1)
            if BIASED:
                score += tl.load(bias + latent, mask=latent < F, other=0.0)
            negative = (score < 0) & ABS
            if ABS:
                score = tl.abs(score)
            key = tl.where(latent < F, keys.pack(score, latent, negative), keys.EMPTY)
            if tl.max(key, 0) > tl.min(best, 0):
                best = tl.topk(tl.reshape(tl.join(best, key), (2 * KEPT,)), KEPT)
        tl.store(candidates + row * capacity + part * KEPT + tl.arange(0, KEPT), best)
        tl.store(counts + row, parts * KEPT)


def exact_rows(
    x: Tensor,
    W: Tensor,
    bias: Tensor | None,
    failed: Tensor,
    n_failed: Tensor,
    candidates: Tensor,
    counts: Tensor,
    k: int,
    *,
    absolute: bool = False,
) -> None:
    """Fill the candidates [T, capacity] and counts [T] of the failed rows with keys, at least k, of their best latents.

    Args:
        x: [T, d]; W: [F, d]; bias: [F] float32 or None.
        failed, n_failed: as from `certify`.
    """
    kept = plan.kept(k)
    capacity = candidates.shape[1]
    parts = max(1, min(capacity // kept, triton.cdiv(W.shape[0], kept)))
    launch(
        exact_rows_kernel,
        (min(4 * multiprocessors(x.device), x.shape[0] * parts),),
        x.device,
        num_warps=4 if kept <= 256 else 8,
        num_stages=1,
        maxnreg=255,
        x=x,
        W=W,
        bias=bias,
        failed=failed,
        n_failed=n_failed,
        candidates=candidates,
        counts=counts,
        F=W.shape[0],
        D=x.shape[1],
        stride_xt=x.stride(0),
        stride_xd=x.stride(1),
        stride_wf=W.stride(0),
        stride_wd=W.stride(1),
        capacity=capacity,
        parts=parts,
        BIASED=bias is not None,
        ABS=absolute,
        KEPT=kept,
        BD=max(16, TILE // kept),
    )
