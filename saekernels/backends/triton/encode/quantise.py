"""quantise: 8-bit copies of x and W_enc with a scale per row, for a screen at twice the speed of 16-bit products.

fp8 e4m3 where tensor cores multiply it (compute capability 8.9 and later), int8 before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.encode import bounds
from saekernels.backends.triton.encode.operands import Operands, Vectors
from saekernels.backends.triton.failed import programs
from saekernels.backends.triton.launch import INTERPRETER, architecture, launch

# Candidates against those of an exact screen: 2.6 times as many at the k-th best, and some room.
GROWTH = 3.0
LINE = 128  # bytes
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


class Quantised(NamedTuple):
    """A matrix [rows, d] in 8 bits.

    Attributes:
        copy: [rows, padded(d)], zeros beyond d.
        scale, norm, error: [rows] float32: what the copy is to be multiplied by, the norm of a row, and the norm of
            what rounding took.
    """

    copy: Tensor
    scale: Tensor
    norm: Tensor
    error: Tensor


@triton.jit
def quantise_kernel(  # type: ignore[no-untyped-def]
    matrix,
    out,
    stale,
    rows,
    D,
    padded,
    stride_row,
    stride_column,
    largest,
    INTEGER: tl.constexpr,
    BD: tl.constexpr,
):
    end = rows
    if stale is not None:
        end = tl.where(tl.load(stale) == 0, 0, rows)
    for at in range(tl.program_id(0), end, tl.num_programs(0)):
        row = tl.cast(at, tl.int64)
        peak = tl.zeros((BD,), tl.float32)
        for start in range(0, D, BD):
            column = start + tl.arange(0, BD)
            place = matrix + row * stride_row + column * stride_column
            value = tl.load(place, mask=column < D, other=0.0).to(tl.float32)
            peak = tl.maximum(peak, tl.where(value == value, tl.abs(value), float("inf")))
        step = tl.max(peak, 0) / largest
        usable = (step > 1e-30) & (step < 1e30)
        step = tl.where(usable, step, 1.0)
        squares = tl.zeros((BD,), tl.float32)
        losses = tl.zeros((BD,), tl.float32)
        for start in range(0, padded, BD):
            column = start + tl.arange(0, BD)
            place = matrix + row * stride_row + column * stride_column
            value = tl.load(place, mask=column < D, other=0.0).to(tl.float32) / step
            bounded = tl.minimum(tl.maximum(tl.where(value == value, value, 0.0), -largest), largest)
            if INTEGER:
                rounded = (bounded + tl.where(bounded >= 0, 0.5, -0.5)).to(tl.int8)
            else:
                rounded = bounded.to(tl.float8e4nv)
            tl.store(out.copy + row * padded + column, rounded, mask=column < padded)
            squares += value * value
            losses += (value - rounded.to(tl.float32)) * (value - rounded.to(tl.float32))
        # NaN and infinities end up in the norms, which lets every latent through.
        tl.store(out.scale + row, step)
        tl.store(out.norm + row, tl.sqrt(tl.sum(squares, 0)) * step)
        tl.store(out.error + row, tl.sqrt(tl.sum(losses, 0)) * step)


def screened(x: Tensor, W: Tensor, bias: Tensor | None, prepared: Quantised | None = None) -> Operands:
    """Operands of an 8-bit screen of x [T, d] and W [F, d], with a reach of `bounds.MARGIN` standard deviations.

    Copies W, F * d bytes of working memory, unless `prepared` has it.
    """
    rows, latents = quantise(x), quantise(W) if prepared is None else prepared
    per_root = bounds.MARGIN * bounds.INFLATION * x.shape[1] ** -0.5
    vectors = Vectors(
        bias,
        row_scale=rows.scale,
        latent_scale=latents.scale,
        row_norm=rows.norm,
        row_error=rows.error * per_root,
        latent_norm=latents.norm,
        latent_error=latents.error * per_root,
        latent_slack=bounds.slack(bias, latents.norm, x.shape[1]),
    )
    return Operands(rows.copy, latents.copy, vectors)


def padded(depth: int) -> int:
    """The depth of an 8-bit copy, one that whole tiles divide."""
    return -(-depth // LINE) * LINE


def dtype_for(device: torch.device) -> torch.dtype:
    """Of 8-bit copies."""
    return torch.int8 if INTERPRETER < architecture(device) < 89 else torch.float8_e4m3fn


def quantise(matrix: Tensor, *, out: Quantised | None = None, stale: Tensor | None = None) -> Quantised:
    """An 8-bit copy of [rows, d], in `out` if that is given; with a `stale` [1] only if that is not 0 on the device."""
    (rows, depth), device = matrix.shape, matrix.device
    dtype = dtype_for(device)
    if out is None:
        vectors = (torch.empty(rows, dtype=torch.float32, device=device) for _ in range(3))
        out = Quantised(torch.empty(rows, padded(depth), dtype=dtype, device=device), *vectors)
    config = configs.lookup("segment", architecture(device), matrix.dtype, depth)
    launch(
        quantise_kernel,
        (rows if stale is None else min(rows, programs(device)),),
        device,
        num_warps=config.num_warps,
        matrix=matrix,
        out=out,
        stale=stale,
        rows=rows,
        D=depth,
        padded=padded(depth),
        stride_row=matrix.stride(0),
        stride_column=matrix.stride(1),
        largest=LARGEST[dtype],
        INTEGER=dtype == torch.int8,
        BD=config.BN * 4,
    )
    return out
