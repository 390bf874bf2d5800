"""The matrix product that every GEMM-shaped kernel shares: one tile of x W^T, accumulated in one fixed order."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs, launch

# How tl.dot multiplies float32: tf32 is the tensor cores' own (10 bits of fraction), tf32x3 nearly float32.
FLOAT32_PRODUCTS = ("tf32", "tf32x3", "ieee")


@triton.jit
def tile_of(  # type: ignore[no-untyped-def]
    pid, rows, columns, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr
):
    """The (row tile, column tile) of a program: GROUP row tiles share each column tile while it is in L2."""
    tiles_m = tl.cdiv(rows, BM)
    tiles_n = tl.cdiv(columns, BN)
    first = pid // (GROUP * tiles_n) * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    within = pid % (GROUP * tiles_n)
    return first + within % size, within // size


@triton.jit
def product(  # type: ignore[no-untyped-def]
    x,
    W,
    tile_m,
    tile_n,
    T,
    F,
    D,
    stride_xt,
    stride_xd,
    stride_wf,
    stride_wd,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """[BM, BN] float32: rows of x [T, D] times rows of W [F, D]. With TMA, x and W are tensor descriptors."""
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    if not TMA:
        x_tile = x + rows.to(tl.int64)[:, None] * stride_xt + depth[None, :] * stride_xd
        W_tile = W + columns.to(tl.int64)[None, :] * stride_wf + depth[:, None] * stride_wd
    integer: tl.constexpr = PRODUCT == "int8" and not UPCAST
    acc_type: tl.constexpr = tl.int32 if integer else tl.float32
    acc = tl.zeros((BM, BN), acc_type)
    for k in range(0, tl.cdiv(D, BK)):
        if TMA:
            a = x.load([tile_m * BM, k * BK])
            b = W.load([tile_n * BN, k * BK]).T
        elif EVEN:
            a = tl.load(x_tile, mask=(rows < T)[:, None], other=0.0)
            b = tl.load(W_tile, mask=(columns < F)[None, :], other=0.0)
        else:
            a = tl.load(x_tile, mask=(rows < T)[:, None] & (depth < D - k * BK)[None, :], other=0.0)
            b = tl.load(W_tile, mask=(columns < F)[None, :] & (depth < D - k * BK)[:, None], other=0.0)
        if UPCAST:  # the interpreter multiplies bfloat16 wrongly, and all small types slowly
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRODUCT if PRODUCT != "int8" else "ieee", out_dtype=acc_type)
        if not TMA:
            x_tile += BK * stride_xd
            W_tile += BK * stride_wd
    return acc.to(tl.float32)


def operands(
    x: Tensor, W: Tensor, config: configs.Config, float32_product: str
) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """The arguments of `product` but for the tiles, and the operands themselves: tensors, or descriptors for TMA."""
    x = x if x.stride(1) == 1 else x.contiguous()
    # A ragged last step costs predicates for every element: shallower tiles, so that they stay in registers.
    depth = config.BK if x.shape[1] % config.BK == 0 else config.BK // 2
    tma = config.has("tma") and all(_describable(matrix) for matrix in (x, W))
    arguments = {
        "T": x.shape[0],
        "F": W.shape[0],
        "D": x.shape[1],
        "stride_xt": x.stride(0),
        "stride_xd": x.stride(1),
        "stride_wf": W.stride(0),
        "stride_wd": W.stride(1),
        "BM": config.BM,
        "BN": config.BN,
        "BK": depth,
        "EVEN": x.shape[1] % depth == 0,
        "TMA": tma,
        "PRODUCT": product_of(x.dtype, float32_product),
        "UPCAST": launch.INTERPRETING and x.dtype != torch.float32,
    }
    if not tma:
        return arguments, (x, W)
    from triton.tools.tensor_descriptor import TensorDescriptor

    return arguments, (
        TensorDescriptor.from_tensor(x, [config.BM, depth]),
        TensorDescriptor.from_tensor(W, [config.BN, depth]),
    )


def product_of(dtype: torch.dtype, float32_product: str) -> str:
    """The `PRODUCT` of two operands of a dtype."""
    if dtype == torch.int8:
        return "int8"
    return float32_product if dtype == torch.float32 else "ieee"


def _describable(matrix: Tensor) -> bool:
    """Whether the tensor memory accelerator can fetch from it: rows contiguous, addresses in steps of 16 bytes."""
    return (
        matrix.stride(1) == 1
        and matrix.stride(0) * matrix.element_size() % 16 == 0
        and launch.aligned(matrix)
        and 0 < matrix.shape[0] < 2**31
    )


def grid(rows: int, columns: int, config: configs.Config) -> tuple[int, ...]:
    """One program per tile, in the order of `tile_of`."""
    return (triton.cdiv(rows, config.BM) * triton.cdiv(columns, config.BN),)
