"""rescore: the candidates that a screen left, scored in float32 in one fixed order: a gather of rows of W_enc.

How many a row has is known on the device alone, and most of the room is empty. So a row gets as many programs as fill
the card together, a single one where there are many rows, and each goes on as long as there are candidates.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saekernels.backends.triton import configs, keys
from saekernels.backends.triton.encode.encoder_inputs import Encoder
from saekernels.backends.triton.keys import Candidates
from saekernels.backends.triton.launch import architecture, launch, multiprocessors
from saekernels.backends.triton.product import sizes_of

# For each multiprocessor: several times what works on it at a time, so that all end at about the same time.
PROGRAMS = 32


@triton.jit
def rescore_kernel(  # type: ignore[no-untyped-def]
    x, W, bias, factor, found, sizes, ABS: tl.constexpr, ENTRIES: tl.constexpr, BD: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(found.counts + row)
    for first in range(tl.program_id(1) * ENTRIES, count, tl.num_programs(1) * ENTRIES):
        at = first + tl.arange(0, ENTRIES)
        here = at < count
        entries = found.keys + row * found.capacity + at
        latent = tl.where(here, keys.index_of(tl.load(entries, mask=here, other=keys.EMPTY)), 0)
        x_row = x + row * sizes.stride_xt
        W_rows = W + latent.to(tl.int64)[:, None] * sizes.stride_wf
        acc = tl.zeros((ENTRIES, BD), tl.float32)
        for start in range(0, sizes.D, BD):
            column = start + tl.arange(0, BD)
            a = tl.load(x_row + column * sizes.stride_xd, mask=column < sizes.D, other=0.0).to(tl.float32)
            wanted = here[:, None] & (column < sizes.D)[None, :]
            b = tl.load(W_rows + column[None, :] * sizes.stride_wd, mask=wanted, other=0.0)
            acc += a[None, :] * b.to(tl.float32)
        score = tl.sum(acc, 1)
        if bias is not None:
            score += tl.load(bias + latent)
        if factor is not None:
            tl.store(found.scores + row * found.capacity + at, score, mask=here)
            score = score * tl.load(factor + latent)
        negative = (score < 0) & ABS
        if ABS:
            score = tl.abs(score)
        tl.store(entries, keys.pack(score, latent, negative), mask=here)


def programs(rows: int, capacity: int, entries: int, multiprocessors: int) -> int:
    """How many programs share a row's candidates, of which each takes `entries` at a time."""
    return max(1, min(triton.cdiv(PROGRAMS * multiprocessors, rows), triton.cdiv(capacity, entries)))


def rescore(of: Encoder, found: Candidates, *, absolute: bool = False) -> None:
    """Replace the scores in the first counts[t] keys, at most capacity, of each row: <x[t], W[latent]> + bias.

    Args:
        of: an encoder. Where it has a factor, keys are of scores times it, and the scores become found.scores.
    """
    x, W = of.x, of.W
    config = configs.lookup("rescore", architecture(x.device), W.dtype, W.shape[1])
    rows = x.shape[0]
    launch(
        rescore_kernel,
        (rows, programs(max(rows, 1), found.capacity, config.BK, multiprocessors(x.device))),
        x.device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        x=x,
        W=W,
        bias=of.bias,
        factor=of.factor,
        found=found,
        sizes=sizes_of(x, W),
        ABS=absolute,
        ENTRIES=config.BK,
        BD=config.BN,
    )
