"""sample: a cheap lower bound on each row's k-th best score, from every step-th latent.

The product with a strided sample of latents keeps only the best of each GROUP_OF neighbours; the r-th largest of
those is the threshold. A strided sample because latents may come sorted; r so large that fewer than k latents reach
the threshold in one row of 10^8 whatever the scores are, were latents in random order (`sampling`). Those rows
are recomputed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs, keys
from saekernels.backends.triton.encode.operands import Operands
from saekernels.backends.triton.encode.sampling import GROUP_OF
from saekernels.backends.triton.encode.screen import compared_of, reach_of, scores_of
from saekernels.backends.triton.launch import architecture, launch, power_of_2
from saekernels.backends.triton.product import grid, operands, product, tile_of


@triton.jit
def sample_kernel(  # type: ignore[no-untyped-def]
    x, W, sizes, vectors, best, groups, ABS: tl.constexpr, GROUP_OF: tl.constexpr, TILE
):
    tile_m, tile_n = tile_of(tl.program_id(0), sizes, TILE)
    acc = product(x, W, tile_m, tile_n, sizes, TILE)
    rows = tile_m * TILE.BM + tl.arange(0, TILE.BM)
    columns = tile_n * TILE.BN + tl.arange(0, TILE.BN)
    score = compared_of(scores_of(acc, rows, columns, sizes, vectors), columns, sizes, vectors)
    if ABS:
        score = tl.abs(score)
    if vectors.row_norm is not None:
        score -= reach_of(rows, columns, sizes, vectors)
    # A maximum on the GPU would lose NaN: the highest score where it is one, no promise where it is only a screen's.
    score = tl.where(score != score, float("inf") if vectors.row_norm is None else float("-inf"), score)
    score = tl.where((columns < sizes.F)[None, :], score, float("-inf"))
    per_tile: tl.constexpr = TILE.BN // GROUP_OF
    top = tl.max(tl.reshape(score, (TILE.BM, per_tile, GROUP_OF)), 2)
    group = tile_n * per_tile + tl.arange(0, per_tile)
    target = best + rows.to(tl.int64)[:, None] * groups + group[None, :]
    tl.store(target, top, mask=(rows < sizes.T)[:, None] & (group < groups)[None, :])


@triton.jit
def rank_kernel(best, threshold, groups, rank, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    scores = tl.load(best + row.to(tl.int64) * groups + at, mask=at < groups, other=float("-inf"))
    tl.store(threshold + row, keys.unordered(keys.rank_of(keys.ordered(scores), rank)))


def sample(of: Operands, rank: int, *, absolute: bool = False) -> Tensor:
    """[T] float32: the rank-th largest of the best of each GROUP_OF latents of `of`, none above the score itself."""
    rows, device = of.x.shape[0], of.x.device
    config = configs.lookup("screen", architecture(device), of.x.dtype, of.x.shape[1])
    groups = triton.cdiv(of.W.shape[0], GROUP_OF)
    best = torch.empty(rows, groups, dtype=torch.float32, device=device)
    launch(
        sample_kernel,
        grid(rows, of.W.shape[0], config),
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        vectors=of.vectors,
        best=best,
        groups=groups,
        ABS=absolute,
        GROUP_OF=GROUP_OF,
        **operands(of.x, of.W, config, of.float32_product),
    )
    threshold = torch.empty(rows, dtype=torch.float32, device=device)
    block = power_of_2(groups, 32)
    # A step of the search is a compare per key and a sum over the block, which one warp does without barriers.
    warps = max(1, min(8, block // 1024))
    launch(
        rank_kernel,
        (rows,),
        device,
        num_warps=warps,
        best=best,
        threshold=threshold,
        groups=groups,
        rank=rank,
        BLOCK=block,
    )
    return threshold
