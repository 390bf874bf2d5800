"""screen: one product of x and W_enc whose epilogue appends the latents that reach a threshold, and stores nothing
else.

The threshold is one per row (top-k: what surely contains the k best) or per latent (JumpReLU, ReLU, BatchTopK).
Where the product is cheaper than the scores asked for, what is compared is the most that a score can be: the
screened score plus its reach, row_norm * latent_error + row_error * latent_norm + latent_slack (`bounds`). A counter
per row runs on past the capacity, so overflow cannot hide. Candidates come in no particular order; `select` and
`gather` put them into one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.encode.append import append, form_of, quarters_of
from saekernels.backends.triton.encode.hopper.screen_hopper import screened
from saekernels.backends.triton.encode.operands import Operands
from saekernels.backends.triton.keys import Candidates
from saekernels.backends.triton.launch import architecture, launch
from saekernels.backends.triton.product import grid, operands, product, tile_of


@triton.jit
def scores_of(acc, rows, columns, sizes, vectors):  # type: ignore[no-untyped-def]
    """[BM, BN] scores of a product."""
    at = columns * vectors.stride_latent
    if vectors.row_scale is not None:
        scale = tl.load(vectors.latent_scale + at, mask=columns < sizes.F, other=0.0)
        acc = acc * tl.load(vectors.row_scale + rows, mask=rows < sizes.T, other=0.0)[:, None] * scale[None, :]
    if vectors.bias is not None:
        acc += tl.load(vectors.bias + at, mask=columns < sizes.F, other=0.0)[None, :]
    return acc


@triton.jit
def factor_of(columns, sizes, vectors):  # type: ignore[no-untyped-def]
    """[BN]: what scores are multiplied by before they are compared, or None."""
    factor = None
    if vectors.factor is not None:
        factor = tl.load(vectors.factor + columns * vectors.stride_latent, mask=columns < sizes.F, other=0.0)
    return factor


@triton.jit
def compared_of(score, columns, sizes, vectors):  # type: ignore[no-untyped-def]
    """[BM, BN]: scores times their factor."""
    factor = factor_of(columns, sizes, vectors)
    return score if factor is None else score * factor[None, :]


@triton.jit
def reach_of(rows, columns, sizes, vectors):  # type: ignore[no-untyped-def]
    """[BM, BN]: how far a score can be from its screened value."""
    at = columns * vectors.stride_latent
    norm = tl.load(vectors.latent_norm + at, mask=columns < sizes.F, other=0.0)[None, :]
    error = tl.load(vectors.latent_error + at, mask=columns < sizes.F, other=0.0)[None, :]
    slack = tl.load(vectors.latent_slack + at, mask=columns < sizes.F, other=0.0)[None, :]
    row_n = tl.load(vectors.row_norm + rows, mask=rows < sizes.T, other=0.0)[:, None]
    row_e = tl.load(vectors.row_error + rows, mask=rows < sizes.T, other=0.0)[:, None]
    return row_n * error + (row_e * norm + slack)


@triton.jit
def screen_kernel(x, W, sizes, vectors, threshold, found, FORM, TILE):  # type: ignore[no-untyped-def]
    tile_m, tile_n = tile_of(tl.program_id(0), sizes, TILE)
    acc = product(x, W, tile_m, tile_n, sizes, TILE)
    rows = tile_m * TILE.BM + tl.arange(0, TILE.BM)
    # A quarter at a time: what belongs to latents is loaded after the quarter before is done with its own, which
    # leaves registers for a second block.
    parts = quarters_of(acc)
    for part in tl.static_range(4):
        columns = tile_n * TILE.BN + part * (TILE.BN // 4) + tl.arange(0, TILE.BN // 4)
        score = scores_of(parts[part], rows, columns, sizes, vectors)
        if vectors.row_norm is not None:
            # What is rescored gets its sign and its value then, and is compared as it is.
            score = compared_of(score, columns, sizes, vectors)
            score = tl.abs(score) if FORM.ABS else score
            score += reach_of(rows, columns, sizes, vectors)
            append(score, threshold, None, rows, columns, sizes, found, False, FORM)
        else:
            factor = factor_of(columns, sizes, vectors)
            append(score, threshold, factor, rows, columns, sizes, found, FORM.ABS, FORM)


def screen(of: Operands, threshold: Tensor, capacity: int, *, per_latent: bool, absolute: bool = False) -> Candidates:
    """The latents that reach a threshold, as keys of their scores; with a factor what reaches it is a score times it.

    Args:
        threshold: float32, [F] with `per_latent` (strictly above counts), else [T] (at least).
        capacity: how many of a row are kept.
        absolute: compare magnitudes.
    """
    rows, device = of.x.shape[0], of.x.device
    config = configs.lookup("screen", architecture(device), of.x.dtype, of.x.shape[1])
    keys = torch.empty(rows, capacity, dtype=torch.int64, device=device)
    found = Candidates(keys, torch.zeros(rows, dtype=torch.int32, device=device), capacity)
    form = form_of(architecture(device), absolute, per_latent, of.rescored, of.vectors.factor is not None)
    if screened(of, threshold, found, form, config):
        return found
    arguments = operands(of.x, of.W, config, of.float32_product)
    launch(
        screen_kernel,
        grid(rows, of.W.shape[0], config),
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        # Predicates of a ragged depth need more registers than there are for two blocks.
        maxnreg=config.maxnreg if arguments["TILE"].EVEN.value else None,
        vectors=of.vectors,
        threshold=threshold,
        found=found,
        FORM=form,
        **arguments,
    )
    return found
