"""gather_dot: one dot product per entry of the codes, a row of `a` with a row of W."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.codes.weighted_rows import place_of, rows_of
from saekernels.backends.triton.launch import architecture, launch


@triton.jit
def gather_dot_kernel(  # type: ignore[no-untyped-def]
    a, W, indices, offsets, out, parts, BD: tl.constexpr, ENTRIES: tl.constexpr, EVEN: tl.constexpr
):
    row = tl.program_id(0) // parts
    begin = tl.load(offsets + row)
    count = (tl.load(offsets + row + 1) - begin).to(tl.int32)
    indices += begin
    out += begin
    for first in range(tl.program_id(0) % parts * ENTRIES, count, parts * ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        # Entries that are not there score the last one that is: no masks in the loop.
        latent = tl.load(indices + tl.minimum(entry, count - 1))[:, None]
        acc = tl.zeros((ENTRIES, BD), tl.float32)
        for start in range(0, W.D, BD):
            column = (start + tl.arange(0, BD))[None, :]
            if EVEN:
                left = tl.load(place_of(a, row, column))
                right = tl.load(place_of(W, latent, column))
            else:
                left = tl.load(place_of(a, row, column), mask=column < W.D, other=0.0)
                right = tl.load(place_of(W, latent, column), mask=column < W.D, other=0.0)
            acc += left.to(tl.float32) * right.to(tl.float32)
        tl.store(out + entry, tl.sum(acc, 1).to(out.dtype.element_ty), mask=entry < count)


def gather_dot(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[nnz] in a's dtype or `dtype`: out[e] = <a[row of e], W[indices[e]]>, summed in float32 in one fixed order."""
    rows, width, count = a.shape[0], a.shape[1], indices.shape[0]
    config = configs.lookup("gather_dot", architecture(a.device), a.dtype, width)
    out = torch.empty(count, dtype=dtype or a.dtype, device=a.device)
    # Programs of a row: one for each ENTRIES where all rows have as many, which takes turns where one has more.
    parts = triton.cdiv(count, max(1, rows) * config.BK)
    launch(
        gather_dot_kernel,
        (rows * parts,),
        a.device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        a=rows_of(a),
        W=rows_of(W),
        indices=indices.contiguous(),
        offsets=offsets.contiguous(),
        out=out,
        parts=parts,
        BD=config.BN,
        ENTRIES=config.BK,
        EVEN=width % config.BN == 0,
    )
    return out
