"""dense: all scores of a few rows at a time, in a buffer of fixed size, for what screening does not serve."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.encode.screen import Operands, scores_of
from saekernels.backends.triton.launch import architecture, launch
from saekernels.backends.triton.product import grid, operands, product, tile_of

BUFFER_BYTES = 32 * 2**20


@triton.jit
def dense_kernel(  # type: ignore[no-untyped-def]
    x,
    W,
    out,
    bias,
    T,
    F,
    D,
    stride_xt,
    stride_xd,
    stride_wf,
    stride_wd,
    BIASED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    tile_m, tile_n = tile_of(tl.program_id(0), T, F, BM, BN, GROUP)
    acc = product(
        x, W, tile_m, tile_n, T, F, D, stride_xt, stride_xd, stride_wf, stride_wd,
        BM, BN, BK, EVEN, TMA, PRODUCT, UPCAST,
    )  # fmt: skip
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    score = scores_of(acc, rows, columns, T, F, bias, bias, bias, 1, BIASED, False)
    target = out + rows.to(tl.int64)[:, None] * F + columns[None, :]
    tl.store(target, score, mask=(rows < T)[:, None] & (columns < F)[None, :])


def dense(of: Operands) -> Tensor:
    """[T, F] float32: every score. For no more rows than `chunks` gives."""
    rows, latents = of.x.shape[0], of.W.shape[0]
    device = of.x.device
    config = configs.lookup("screen", architecture(device), of.x.dtype, of.x.shape[1])
    out = torch.empty(rows, latents, dtype=torch.float32, device=device)
    arguments, (x, W) = operands(of.x, of.W, config, of.float32_product)
    launch(
        dense_kernel,
        grid(rows, latents, config),
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        x=x,
        W=W,
        out=out,
        bias=of.bias,
        BIASED=of.bias is not None,
        GROUP=config.group,
        **arguments,
    )
    return out


def chunks(rows: int, latents: int) -> Iterator[slice]:
    """Slices of rows whose scores fit into the buffer; one row at least."""
    step = max(1, BUFFER_BYTES // (4 * latents))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
