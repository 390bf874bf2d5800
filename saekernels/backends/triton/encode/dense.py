"""dense: all scores of a few rows at a time, in a buffer of fixed size, for what screening does not serve."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.encode.operands import Operands
from saekernels.backends.triton.encode.screen import scores_of
from saekernels.backends.triton.launch import architecture, launch
from saekernels.backends.triton.product import grid, operands, product, tile_of


@triton.jit
def dense_kernel(x, W, sizes, vectors, out, TILE):  # type: ignore[no-untyped-def]
    tile_m, tile_n = tile_of(tl.program_id(0), sizes, TILE)
    acc = product(x, W, tile_m, tile_n, sizes, TILE)
    rows = tile_m * TILE.BM + tl.arange(0, TILE.BM)
    columns = tile_n * TILE.BN + tl.arange(0, TILE.BN)
    score = scores_of(acc, rows, columns, sizes, vectors)
    target = out + rows.to(tl.int64)[:, None] * sizes.F + columns[None, :]
    tl.store(target, score, mask=(rows < sizes.T)[:, None] & (columns < sizes.F)[None, :])


def dense(of: Operands) -> Tensor:
    """[T, F] float32: every score of operands that need no rescoring. For no more rows than `topk.chunks` gives."""
    (rows, width), latents, device = of.x.shape, of.W.shape[0], of.x.device
    config = configs.lookup("screen", architecture(device), of.x.dtype, width)
    out = torch.empty(rows, latents, dtype=torch.float32, device=device)
    launch(
        dense_kernel,
        grid(rows, latents, config),
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        vectors=of.vectors,
        out=out,
        **operands(of.x, of.W, config, of.float32_product),
    )
    return out
