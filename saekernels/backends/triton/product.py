"""The matrix product that every GEMM-shaped kernel shares: one tile of x W^T, accumulated in one fixed order."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs, launch


class Sizes(NamedTuple):
    """Of x [T, D] and W [F, D], and their strides in elements."""

    T: int
    F: int
    D: int
    stride_xt: int
    stride_xd: int
    stride_wf: int
    stride_wd: int


class Tile(NamedTuple):
    """The constants that a product is compiled for; all are `tl.constexpr`.

    Attributes:
        BM, BN, BK, GROUP: as in `configs.Config`.
        EVEN: whether BK divides the depth.
        TMA: whether x and W are tensor descriptors.
        PRODUCT: how `tl.dot` multiplies: "int8" for integers; float32 in "tf32" (the tensor cores' own, 10 bits of
            fraction), "tf32x3" (nearly float32) or "ieee", which stands for 16-bit types too.
        UPCAST: the interpreter multiplies bfloat16 wrongly, and all small types slowly.
    """

    BM: Any
    BN: Any
    BK: Any
    GROUP: Any
    EVEN: Any
    TMA: Any
    PRODUCT: Any
    UPCAST: Any


@triton.jit
def tile_of(pid, sizes, TILE):  # type: ignore[no-untyped-def]
    """The (row tile, column tile) of a program: GROUP row tiles share each column tile while it is in L2."""
    tiles_m = tl.cdiv(sizes.T, TILE.BM)
    tiles_n = tl.cdiv(sizes.F, TILE.BN)
    first = pid // (tiles_n * TILE.GROUP) * TILE.GROUP
    size = tl.minimum(tiles_m - first, TILE.GROUP)
    within = pid % (tiles_n * TILE.GROUP)
    return first + within % size, within // size


@triton.jit
def product(x, W, tile_m, tile_n, sizes, TILE):  # type: ignore[no-untyped-def]
    """[BM, BN] float32: rows of x times rows of W."""
    rows = tile_m * TILE.BM + tl.arange(0, TILE.BM)
    columns = tile_n * TILE.BN + tl.arange(0, TILE.BN)
    depth = tl.arange(0, TILE.BK)
    if not TILE.TMA:
        x_tile = x + rows.to(tl.int64)[:, None] * sizes.stride_xt + depth[None, :] * sizes.stride_xd
        W_tile = W + columns.to(tl.int64)[None, :] * sizes.stride_wf + depth[:, None] * sizes.stride_wd
    integer: tl.constexpr = TILE.PRODUCT == "int8" and not TILE.UPCAST
    acc_type: tl.constexpr = tl.int32 if integer else tl.float32
    precision: tl.constexpr = TILE.PRODUCT if TILE.PRODUCT != "int8" else "ieee"
    acc = tl.zeros((TILE.BM, TILE.BN), acc_type)
    for k in range(0, tl.cdiv(sizes.D, TILE.BK)):
        if TILE.TMA:
            a = x.load([tile_m * TILE.BM, k * TILE.BK])
            b = W.load([tile_n * TILE.BN, k * TILE.BK]).T
        elif TILE.EVEN:
            a = tl.load(x_tile, mask=(rows < sizes.T)[:, None], other=0.0)
            b = tl.load(W_tile, mask=(columns < sizes.F)[None, :], other=0.0)
        else:
            left = depth < sizes.D - k * TILE.BK
            a = tl.load(x_tile, mask=(rows < sizes.T)[:, None] & left[None, :], other=0.0)
            b = tl.load(W_tile, mask=(columns < sizes.F)[None, :] & left[:, None], other=0.0)
        if TILE.UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=precision, out_dtype=acc_type)
        if not TILE.TMA:
            x_tile += sizes.stride_xd * TILE.BK
            W_tile += sizes.stride_wd * TILE.BK
    return acc.to(tl.float32)


def operands(x: Tensor, W: Tensor, config: configs.Config, float32_product: str) -> dict[str, Any]:
    """The arguments of `product` but for the tiles; x and W are tensors, or descriptors for TMA."""
    x = x if x.stride(1) == 1 else x.contiguous()
    # A ragged last step costs predicates for every element: shallower tiles, so that they stay in registers.
    depth = config.BK if x.shape[1] % config.BK == 0 else config.BK // 2
    tma = config.has("tma") and all(describable(matrix) for matrix in (x, W))
    sizes, tile = sizes_of(x, W), tile_for(x, config._replace(BK=depth), float32_product, tma=tma)
    if not tma:
        return {"x": x, "W": W, "sizes": sizes, "TILE": tile}
    from triton.tools.tensor_descriptor import TensorDescriptor

    return {
        "x": TensorDescriptor.from_tensor(x, [config.BM, depth]),
        "W": TensorDescriptor.from_tensor(W, [config.BN, depth]),
        "sizes": sizes,
        "TILE": tile,
    }


def sizes_of(x: Tensor, W: Tensor) -> Sizes:
    """The sizes of x [T, D] and W [F, D]."""
    return Sizes(x.shape[0], *W.shape, *x.stride(), *W.stride())


def tile_for(x: Tensor, config: configs.Config, float32_product: str, *, tma: bool = False) -> Tile:
    """The constants of a product of x [T, D] with a matrix of its dtype."""
    even = x.shape[1] % config.BK == 0 < x.shape[1]
    upcast = launch.INTERPRETING and x.dtype != torch.float32
    how = product_of(x.dtype, float32_product)
    return _tile(config.BM, config.BN, config.BK, config.group, even, tma, how, upcast)


@functools.cache
def _tile(*constants: Any) -> Tile:
    """Made once, for a call of a few tokens is the host's time."""
    return Tile(*map(tl.constexpr, constants))


def product_of(dtype: torch.dtype, float32_product: str) -> str:
    """The `PRODUCT` of two operands of a dtype."""
    if dtype == torch.int8:
        return "int8"
    return float32_product if dtype == torch.float32 else "ieee"


def describable(matrix: Tensor) -> bool:
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
