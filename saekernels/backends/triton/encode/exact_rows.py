"""exact_rows: the k best of the rows that no screen could certify, from all of their scores, without asking the host.

Every program asks how many rows failed, which is none as a rule, and is done. Else failed rows are cut into places,
each some of the latents and some of the room where the row's candidates were; and where there are fewer places than
programs, a place into shares, so that one row keeps the whole card busy. A program goes through its latents in
float32, in a fixed order, and keeps its k best; the last of a place to be done puts those of all shares together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saekernels.backends.triton import keys
from saekernels.backends.triton.encode.encoder_inputs import Encoder
from saekernels.backends.triton.encode.sampling import kept
from saekernels.backends.triton.failed import Failed, counter, programs
from saekernels.backends.triton.keys import Candidates
from saekernels.backends.triton.launch import launch
from saekernels.backends.triton.product import sizes_of

# A score tile of a program, in elements of the product.
TILE = 2048


@triton.jit
def better(best, key, KEPT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The KEPT largest of two blocks of KEPT keys."""
    if tl.max(key, 0) > tl.min(best, 0):
        best = tl.topk(tl.reshape(tl.join(best, key), (2 * KEPT,)), KEPT)
    return best


@triton.jit
def scores_at(x, W, bias, row, latent, sizes, KEPT: tl.constexpr, BD: tl.constexpr):  # type: ignore[no-untyped-def]
    """[KEPT] scores of a row's latents."""
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
    return score


@triton.jit
def best_of(  # type: ignore[no-untyped-def]
    x, W, bias, factor, row, first, end, sizes, ABS: tl.constexpr, KEPT: tl.constexpr, BD: tl.constexpr
):
    """[KEPT] keys of a row's best latents from `first` to `end`."""
    best = tl.full((KEPT,), keys.EMPTY, tl.int64)
    for start_latent in range(first, end, KEPT):
        latent = start_latent + tl.arange(0, KEPT)
        score = scores_at(x, W, bias, row, latent, sizes, KEPT, BD)
        if factor is not None:
            score = score * tl.load(factor + latent, mask=latent < sizes.F, other=0.0)
        negative = (score < 0) & ABS
        if ABS:
            score = tl.abs(score)
        best = better(best, tl.where(latent < sizes.F, keys.pack(score, latent, negative), keys.EMPTY), KEPT)
    return best


@triton.jit
def put(  # type: ignore[no-untyped-def]
    best, x, W, bias, factor, found, target, row, sizes, KEPT: tl.constexpr, BD: tl.constexpr
):
    """Store a place's keys, and, where those are of scores times a factor, the scores."""
    tl.store(found.keys + target, best)
    if factor is not None:
        tl.store(found.scores + target, scores_at(x, W, bias, row, keys.index_of(best), sizes, KEPT, BD))


@triton.jit
def exact_rows_kernel(  # type: ignore[no-untyped-def]
    x,
    W,
    bias,
    factor,
    failed,
    found,
    sizes,
    shared,
    seen,
    places,
    ABS: tl.constexpr,
    KEPT: tl.constexpr,
    BD: tl.constexpr,
):
    number = tl.load(failed.number)
    if (number > 0) & (tl.program_id(0) == 0):
        tl.atomic_add(seen, number, sem="relaxed")
    blocks = tl.cdiv(sizes.F, KEPT)
    shares = tl.minimum(tl.num_programs(0) // tl.maximum(number * places, 1), tl.cdiv(blocks, places))
    shares = tl.maximum(shares, 1)
    each = tl.cdiv(blocks, places * shares) * KEPT
    at = tl.arange(0, KEPT)
    for item in range(tl.program_id(0), number * places * shares, tl.num_programs(0)):
        row = tl.load(failed.rows + item // (places * shares)).to(tl.int64)
        place = item // shares % places
        first = item % (places * shares) * each
        best = best_of(x, W, bias, factor, row, first, tl.minimum(first + each, sizes.F), sizes, ABS, KEPT, BD)
        target = row * found.capacity + place * KEPT + at
        if shares == 1:
            put(best, x, W, bias, factor, found, target, row, sizes, KEPT, BD)
        else:
            tl.store(shared + item * KEPT + at, best)
            tl.debug_barrier()  # what all threads stored is there before one of them says so
            if tl.atomic_add(failed.arrived + item // shares, 1, sem="acq_rel") == shares - 1:
                ours = shared + (item - item % shares) * KEPT
                best = tl.full((KEPT,), keys.EMPTY, tl.int64)
                for share in range(0, shares):
                    best = better(best, tl.load(ours + share * KEPT + at), KEPT)
                put(best, x, W, bias, factor, found, target, row, sizes, KEPT, BD)
        tl.store(found.counts + row, places * KEPT)


def exact_rows(of: Encoder, failed: Failed, found: Candidates, k: int, *, absolute: bool = False) -> None:
    """Fill keys and counts of the failed rows with keys, at least k, of their best latents, and count those rows.

    Where the encoder has a factor, keys are of scores times it, and the scores become found.scores.
    """
    x, W = of.x, of.W
    most = kept(k)
    blocks = triton.cdiv(W.shape[0], most)
    grid = min(programs(x.device), x.shape[0] * blocks)
    launch(
        exact_rows_kernel,
        (grid,),
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
        shared=torch.empty(grid, most, dtype=torch.int64, device=x.device),
        seen=counter(x.device),
        places=max(1, min(found.capacity // most, blocks)),
        ABS=absolute,
        KEPT=most,
        BD=max(16, TILE // most),
    )
