"""rescore: the candidates that a screen left, scored in float32 in one fixed order: a gather of rows of W_enc."""

from __future__ import annotations

import triton
import triton.language as tl

from saekernels.backends.triton import configs, keys
from saekernels.backends.triton.encode.encoder_inputs import Encoder
from saekernels.backends.triton.keys import Candidates
from saekernels.backends.triton.launch import architecture, launch
from saekernels.backends.triton.product import sizes_of


@triton.jit
def rescore_kernel(  # type: ignore[no-untyped-def]
    x, W, bias, factor, found, sizes, ABS: tl.constexpr, ENTRIES: tl.constexpr, BD: tl.constexpr
):
    row = tl.program_id(0)
    at = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    here = at < tl.load(found.counts + row)
    if tl.program_id(1) * ENTRIES < tl.load(found.counts + row):
        entries = found.keys + row.to(tl.int64) * found.capacity + at
        latent = tl.where(here, keys.index_of(tl.load(entries, mask=here, other=keys.EMPTY)), 0)
        x_row = x + row.to(tl.int64) * sizes.stride_xt
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
            score = score * tl.load(factor + latent)
        negative = (score < 0) & ABS
        if ABS:
            score = tl.abs(score)
        tl.store(entries, keys.pack(score, latent, negative), mask=here)


def rescore(of: Encoder, found: Candidates, *, absolute: bool = False) -> None:
    """Replace the scores in the first counts[t] keys, at most capacity, of each row: <x[t], W[latent]> + bias.

    Args:
        of: an encoder, whose factor scores are multiplied by where it has one.
    """
    x, W = of.x, of.W
    config = configs.lookup("gather_dot", architecture(x.device), W.dtype, W.shape[1])
    launch(
        rescore_kernel,
        (x.shape[0], triton.cdiv(found.capacity, config.BK)),
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
