"""decode: each row's sum of values times rows of W_dec, in the order of its entries.

Programs of all rows for one block of columns come before those of the next, so that a slice of W_dec, F x columns,
is read from memory once and from L2 as often as it is used (docs/explanation/gpu_model.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.codes.weighted_rows import rows_of, sum_rows
from saekernels.backends.triton.launch import architecture, launch


@triton.jit
def decode_kernel(  # type: ignore[no-untyped-def]
    values, indices, offsets, W, bias, stride_bias, out, BD: tl.constexpr, ENTRIES: tl.constexpr, EVEN: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    begin = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    acc = sum_rows(values, indices, begin, end, W, column, BD, ENTRIES, EVEN)
    if bias is not None:
        acc += tl.load(bias + column * stride_bias, mask=column < W.D, other=0.0).to(tl.float32)
    tl.store(out + row * W.D + column, acc.to(out.dtype.element_ty), mask=column < W.D)


def decode(
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    W_dec: Tensor,
    b_dec: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """[T, d_out] in `dtype` or W_dec's: the sum of values[e] * W_dec[indices[e]] in a row's order, plus b_dec."""
    rows, width = offsets.shape[0] - 1, W_dec.shape[1]
    config = configs.lookup("decode", architecture(W_dec.device), W_dec.dtype, width)
    out = torch.empty(rows, width, dtype=dtype or W_dec.dtype, device=W_dec.device)
    launch(
        decode_kernel,
        (rows, triton.cdiv(width, config.BN)),
        W_dec.device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        values=values.contiguous(),
        indices=indices.contiguous(),
        offsets=offsets.contiguous(),
        W=rows_of(W_dec),
        bias=b_dec,
        stride_bias=0 if b_dec is None else b_dec.stride(0),
        out=out,
        BD=config.BN,
        ENTRIES=config.BK,
        EVEN=width % config.BN == 0,
    )
    return out
