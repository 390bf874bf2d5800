"""quantise: 8-bit copies of x and W_enc with a scale per row, for a screen at twice the speed of 16-bit products.

fp8 e4m3 where tensor cores multiply it (compute capability 8.9 and later), int8 before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.encode import bounds
from saekernels.backends.triton.encode.operands import Operands, Vectors
from saekernels.backends.triton.launch import INTERPRETER, architecture, launch

# Candidates against those of an exact screen: 2.6 times as many at the k-th best, and some room.
GROWTH = 3.0
LINE = 128  # bytes
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


@triton.jit
def quantise_kernel(  # type: ignore[no-untyped-def]
    matrix,
    out,
    scale,
    norm,
    error,
    D,
    padded,
    stride_row,
    stride_column,
    largest,
    INTEGER: tl.constexpr,
    BD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    peak = tl.zeros((BD,), tl.float32)
    for start in range(0, D, BD):
        column = start + tl.arange(0, BD)
        value = tl.load(matrix + row * stride_row + column * stride_column, mask=column < D, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.where(value == value, tl.abs(value), float("inf")))
    step = tl.max(peak, 0) / largest
    usable = (step > 1e-30) & (step < 1e30)
    step = tl.where(usable, step, 1.0)
    squares = tl.zeros((BD,), tl.float32)
    losses = tl.zeros((BD,), tl.float32)
    for start in range(0, padded, BD):
        column = start + tl.arange(0, BD)
        value = tl.load(matrix + row * stride_row + column * stride_column, mask=column < D, other=0.0).to(tl.float32)
        value = value / step
        bounded = tl.minimum(tl.maximum(tl.where(value == value, value, 0.0), -largest), largest)
        if INTEGER:  # noqa: SIM108 - compiled for one of the two
            rounded = (bounded + tl.where(bounded >= 0, 0.5, -0.5)).to(tl.int8)
        else:
            rounded = bounded.to(tl.float8e4nv)
        tl.store(out + row * padded + column, rounded, mask=column < padded)
        squares += value * value
        losses += (value - rounded.to(tl.float32)) * (value - rounded.to(tl.float32))
    # NaN and infinities end up in the norms, which lets every latent through.
    tl.store(scale + row, step)
    tl.store(norm + row, tl.sqrt(tl.sum(squares, 0)) * step)
    tl.store(error + row, tl.sqrt(tl.sum(losses, 0)) * step)


def screened(x: Tensor, W: Tensor, bias: Tensor | None) -> Operands:
    """Operands of an 8-bit screen of x [T, d] and W [F, d], with a reach of `bounds.MARGIN` standard deviations.

    Copies W: F * d bytes of working memory.
    """
    x8, row_scale, row_norm, row_error = quantise(x)
    W8, latent_scale, latent_norm, latent_error = quantise(W)
    per_root = bounds.MARGIN * bounds.INFLATION * x.shape[1] ** -0.5
    vectors = Vectors(
        bias,
        row_scale=row_scale,
        latent_scale=latent_scale,
        row_norm=row_norm,
        row_error=row_error * per_root,
        latent_norm=latent_norm,
        latent_error=latent_error * per_root,
        latent_slack=bounds.slack(bias, latent_norm, x.shape[1]),
    )
    return Operands(x8, W8, vectors)


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A copy of [rows, d] in 8 bits, and per row its scale, its norm, and the norm of what rounding took, float32.

    The copy is padded with zeros to a depth that whole tiles divide.
    """
    rows, depth = matrix.shape
    padded = -(-depth // LINE) * LINE
    device = matrix.device
    arch = architecture(device)
    dtype = torch.int8 if INTERPRETER < arch < 89 else torch.float8_e4m3fn
    out = torch.empty(rows, padded, dtype=dtype, device=device)
    scale, norm, error = (torch.empty(rows, dtype=torch.float32, device=device) for _ in range(3))
    config = configs.lookup("segment", arch, matrix.dtype, depth)
    launch(
        quantise_kernel,
        (rows,),
        device,
        num_warps=config.num_warps,
        matrix=matrix,
        out=out,
        scale=scale,
        norm=norm,
        error=error,
        D=depth,
        padded=padded,
        stride_row=matrix.stride(0),
        stride_column=matrix.stride(1),
        largest=LARGEST[dtype],
        INTEGER=dtype == torch.int8,
        BD=config.BN * 4,
    )
    return out, scale, norm, error
