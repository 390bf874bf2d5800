"""gather_matmul: for each row of the codes a product of its many vectors with the rows of W that its entries name.

Vectors are the rows of a tile and entries its columns: Hopper and Blackwell multiply 64 rows or more, and a row of the
codes has few entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.codes.weighted_rows import place_of, rows_of
from saekernels.backends.triton.launch import INTERPRETING, architecture, launch


class Stack(NamedTuple):
    """Matrices [B, T, *] and their strides in elements; kernels take them as one argument."""

    matrices: Tensor
    B: int
    stride_matrix: int
    stride_row: int
    stride_column: int


@triton.jit
def gather_matmul_kernel(  # type: ignore[no-untyped-def]
    stack,
    W,
    indices,
    offsets,
    out,
    parts,
    blocks,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # Blocks of vectors come first, so that rows of W are read from memory once.
    share = tl.program_id(0) // blocks
    vector = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    row = share // parts
    begin = tl.load(offsets + row)
    count = (tl.load(offsets + row + 1) - begin).to(tl.int32)
    indices += begin
    # Vectors and entries that are not there compute what the last one that is does: no masks but for a ragged depth.
    number = tl.minimum(vector, stack.B - 1).to(tl.int64)[:, None]
    vectors = stack.matrices + row.to(tl.int64) * stack.stride_row + number * stack.stride_matrix
    for first in range(share % parts * BN, count, parts * BN):
        entry = first + tl.arange(0, BN)
        latent = tl.load(indices + tl.minimum(entry, count - 1))[None, :]
        acc = tl.zeros((BM, BN), tl.float32)
        for start in range(0, W.D, BK):
            column = start + tl.arange(0, BK)
            left_at = vectors + column[None, :] * stack.stride_column
            right_at = place_of(W, latent, column[:, None])
            if EVEN:
                left = tl.load(left_at)
                right = tl.load(right_at)
            else:
                left = tl.load(left_at, mask=(column < W.D)[None, :], other=0.0)
                right = tl.load(right_at, mask=(column < W.D)[:, None], other=0.0)
            if UPCAST:
                left = left.to(tl.float32)
                right = right.to(tl.float32)
            acc = tl.dot(left, right, acc, input_precision="ieee")
        to = out + (begin + entry)[None, :] * stack.B + vector[:, None]
        tl.store(to, acc.to(out.dtype.element_ty), mask=(entry < count)[None, :] & (vector < stack.B)[:, None])


def gather_matmul(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[nnz, B] in a's dtype or `dtype`: out[e, b] = <a[b, row of e], W[indices[e]]>, in float32 in one fixed order."""
    vectors, rows, width = a.shape
    config = configs.lookup("gather_matmul", architecture(a.device), a.dtype, width)
    out = torch.empty(indices.shape[0], vectors, dtype=dtype or a.dtype, device=a.device)
    # Programs of a row: one for each BN of the entries where all rows have as many, as those of gather_dot.
    parts = triton.cdiv(indices.shape[0], max(1, rows) * config.BN)
    blocks = triton.cdiv(vectors, config.BM)
    launch(
        gather_matmul_kernel,
        (rows * parts * blocks,),
        a.device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        stack=Stack(a, vectors, *a.stride()),
        W=rows_of(W),
        indices=indices.contiguous(),
        offsets=offsets.contiguous(),
        out=out,
        parts=parts,
        blocks=blocks,
        BM=config.BM,
        BN=config.BN,
        BK=config.BK,
        EVEN=width % config.BK == 0,
        # The interpreter multiplies small types slowly; vectors may be more precise than W.
        UPCAST=a.dtype != W.dtype or (INTERPRETING and a.dtype != torch.float32),
    )
    return out
