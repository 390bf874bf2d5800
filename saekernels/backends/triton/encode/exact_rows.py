"""exact_rows: the k best of the rows that no screen could certify, from all of their scores, without asking the host.

Every program asks how many rows failed, which is none as a rule, and is done. Else a row is shared by several
programs: each goes through its part of the latents in float32, in a fixed order, and leaves its own k best where the
row's candidates were.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saekernels.backends.triton import keys
from saekernels.backends.triton.encode.certify import Failed
from saekernels.backends.triton.encode.encoder_inputs import Encoder
from saekernels.backends.triton.encode.sampling import kept
from saekernels.backends.triton.keys import Candidates
from saekernels.backends.triton.launch import launch, multiprocessors
from saekernels.backends.triton.product import sizes_of

# A score tile of a program, in elements of the product.
TILE = 2048


@triton.jit
def exact_rows_kernel(  # type: ignore[no-untyped-def]
    x, W, bias, factor, failed, found, sizes, parts, ABS: tl.constexpr, KEPT: tl.constexpr, BD: tl.constexpr
):
    items = tl.load(failed.number) * parts
    each = tl.cdiv(tl.cdiv(sizes.F, KEPT), parts) * KEPT
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        row = tl.load(failed.rows + item // parts).to(tl.int64)
        part = item % parts
        best = tl.full((KEPT,), keys.EMPTY, tl.int64)
        for first in range(part * each, tl.minimum((part + 1) * each, sizes.F), KEPT):
            latent = first + tl.arange(0, KEPT)
            acc = tl.zeros((KEPT, BD), tl.float32)
            for start in range(0, sizes.D, BD):
                column = start + tl.arange(0, BD)
                here = column < sizes.D
                a = tl.load(x + row * sizes.stride_xt + column * sizes.stride_xd, mask=here, other=0.0).to(tl.float32)
                place = latent.to(tl.int64)[:, None] * sizes.stride_wf + column[None, :] * sizes.stride_wd
                b = tl.load(W + place, mask=(latent < sizes.F)[:, None] & here[None, :], other=0.0)
                acc += a[None, :] * b.to(tl.float32)
            score = tl.sum(acc, 1)
            if bias is not None:
                score += tl.load(bias + latent, mask=latent < sizes.F, other=0.0)
            if factor is not None:
                score = score * tl.load(factor + latent, mask=latent < sizes.F, other=0.0)
            negative = (score < 0) & ABS
            if ABS:
                score = tl.abs(score)
            key = tl.where(latent < sizes.F, keys.pack(score, latent, negative), keys.EMPTY)
            if tl.max(key, 0) > tl.min(best, 0):
                best = tl.topk(tl.reshape(tl.join(best, key), (2 * KEPT,)), KEPT)
        tl.store(found.keys + row * found.capacity + part * KEPT + tl.arange(0, KEPT), best)
        tl.store(found.counts + row, parts * KEPT)


def exact_rows(of: Encoder, failed: Failed, found: Candidates, k: int, *, absolute: bool = False) -> None:
    """Fill keys and counts of the failed rows with keys, at least k, of their best latents."""
    x, W = of.x, of.W
    most = kept(k)
    parts = max(1, min(found.capacity // most, triton.cdiv(W.shape[0], most)))
    launch(
        exact_rows_kernel,
        (min(4 * multiprocessors(x.device), x.shape[0] * parts),),
        x.device,
        num_warps=4 if most <= 256 else 8,
        num_stages=1,
        maxnreg=255,
        x=x,
        W=W,
        bias=of.bias,
        factor=of.factor,
        failed=failed,
        found=found,
        sizes=sizes_of(x, W),
        parts=parts,
        ABS=absolute,
        KEPT=most,
        BD=max(16, TILE // most),
    )
