"""sample: a cheap lower bound on each row's k-th best score, from every step-th latent.

The product with a strided sample of latents keeps only the best of each GROUP_OF neighbours; the r-th largest of
those is the threshold. A strided sample because latents may come sorted; r so large that fewer than k latents reach
the threshold in one row of 10^8 whatever the scores are, were latents in random order (`plan`). Those rows
are recomputed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs, keys
from saekernels.backends.triton.encode.sampling import GROUP_OF
from saekernels.backends.triton.encode.screen import Operands, reach_of, scores_of
from saekernels.backends.triton.launch import architecture, launch, power_of_2
from saekernels.backends.triton.product import grid, operands, product, tile_of


@triton.jit
def sample_kernel(  # type: ignore[no-untyped-def]
    x,
    W,
    best,
    bias,
    row_scale,
    latent_scale,
    row_norm,
    row_error,
    latent_norm,
    latent_error,
    latent_slack,
    T,
    F,
    D,
    stride_xt,
    stride_xd,
    stride_wf,
    stride_wd,
    stride_latent,
    groups,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    REACH: tl.constexpr,
    ABS: tl.constexpr,
    GROUP_OF: tl.constexpr,
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
    score = scores_of(acc, rows, columns, T, F, bias, row_scale, latent_scale, stride_latent, BIASED, SCALED)
    if ABS:
        score = tl.abs(score)
    if REACH:
        score -= reach_of(
            rows, columns, T, F, row_norm, row_error, latent_norm, latent_error, latent_slack, stride_latent
        )
    # A maximum on the GPU would lose NaN: the highest score where it is one, no promise where it is only a screen's.
    score = tl.where(score != score, float("-inf") if REACH else float("inf"), score)
    score = tl.where((columns < F)[None, :], score, float("-inf"))
    top = tl.max(tl.reshape(score, (BM, BN // GROUP_OF, GROUP_OF)), 2)
    group = tile_n * (BN // GROUP_OF) + tl.arange(0, BN // GROUP_OF)
    target = best + rows.to(tl.int64)[:, None] * groups + group[None, :]
    tl.store(target, top, mask=(rows < T)[:, None] & (group < groups)[None, :])


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
    arguments, (x, W) = operands(of.x, of.W, config, of.float32_product)
    launch(
        sample_kernel,
        grid(rows, of.W.shape[0], config),
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        x=x,
        W=W,
        best=best,
        groups=groups,
        ABS=absolute,
        GROUP_OF=GROUP_OF,
        GROUP=config.group,
        **arguments,
        **of.vectors(),
    )
    threshold = torch.empty(rows, dtype=torch.float32, device=device)
    block = power_of_2(groups, 32)
    warps = max(1, min(8, block // 256))
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
