"""linear_ce_kl_backward: the gradients of hidden states, W_U and bias, without a [T, V] matrix.

SLAB words of the vocabulary pass one after another. Of a slab: the logits' gradients dz [2, T, SLAB], made from logits
that are computed anew; d h += dz W; d W = dz^T h over both streams. Every sum has one order, whatever the batch: that
of words, or of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.launch import architecture, launch
from saekernels.backends.triton.loss.logits import FLOAT32_PRODUCT, special, streams, tile_of_logits
from saekernels.backends.triton.loss.slopes import Losses, rows_kernel, slopes_kernel
from saekernels.backends.triton.product import grid, product, sizes_of, tile_for, tile_of

# Words at a time: d h [2, T, d] is read and written once for so many, dz [2, T, SLAB] is what they take.
SLAB = 4096


@triton.jit
def accumulate_kernel(x, W, out, sizes, ADD: tl.constexpr, TILE):  # type: ignore[no-untyped-def]
    """out [T, F] = x [T, D] @ W [F, D].T; ADD: added to it."""
    tile_m, tile_n = tile_of(tl.program_id(0), sizes, TILE)
    acc = product(x, W, tile_m, tile_n, sizes, TILE)
    rows = (tile_m * TILE.BM + tl.arange(0, TILE.BM)).to(tl.int64)[:, None]
    columns = (tile_n * TILE.BN + tl.arange(0, TILE.BN))[None, :]
    inside = (rows < sizes.T) & (columns < sizes.F)
    place = out + rows * sizes.F + columns
    if ADD:
        acc += tl.load(place, mask=inside, other=0.0)
    tl.store(place, acc.to(out.dtype.element_ty), mask=inside)


def _accumulate(x: Tensor, W: Tensor, out: Tensor, *, add: bool) -> None:
    """out [T, F], contiguous, = x [T, D] @ W [F, D].T, or added to it."""
    config = configs.lookup("linear_ce_kl_backward", architecture(x.device), x.dtype, x.shape[1])
    if x.shape[1] % config.BK:
        config = config._replace(BK=config.BK // 2)
    tile = tile_for(x, config, FLOAT32_PRODUCT)
    if x.dtype != W.dtype:  # float16: its gradients have float32's range, and tf32 holds all digits of its values
        tile = tile._replace(UPCAST=tl.constexpr(True), PRODUCT=tl.constexpr("tf32"))
    launch(
        accumulate_kernel,
        grid(out.shape[0], out.shape[1], config),
        x.device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        x=x,
        W=W,
        out=out,
        sizes=sizes_of(x, W),
        ADD=add,
        TILE=tile,
    )


def linear_ce_kl_backward(
    grad_ce_p: Tensor,
    grad_ce_q: Tensor,
    grad_kl: Tensor,
    ce_p: Tensor,
    ce_q: Tensor,
    kl: Tensor,
    h_p: Tensor,
    h_q: Tensor,
    W_U: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    ignore_index: int,
    need_h: bool,
    need_W: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h_p [T, d], h_q [T, d], W_U [V, d] and bias [V], empty where not needed.

    bfloat16: each logit's gradient is rounded before it is multiplied with W_U and h, as autograd through bfloat16
    logits does; the bias's sums are of float32. float16: both are float32's, multiplied as tf32.
    Working memory: SLAB gradients of logits for each row of both streams
    (2 bytes each for bfloat16, else 4), a copy of both, and with `need_h` as much in float32.
    """
    rows, vocabulary, width, device = h_p.shape[0], W_U.shape[0], W_U.shape[1], h_p.device
    targets = targets.contiguous()
    # Ignored rows are 0, so that what they hold reaches no sum.
    h = torch.stack((h_p, h_q)).masked_fill_((targets == ignore_index)[None, :, None], 0)
    config = tile_of_logits(h_p, bias)
    words = min(SLAB, config.BN * triton.cdiv(vocabulary, config.BN))
    slab = torch.empty(2, rows, words, dtype=torch.bfloat16 if h.dtype == torch.bfloat16 else torch.float32,
                       device=device)  # fmt: skip
    sums = torch.empty(triton.cdiv(rows, config.BM), words, dtype=torch.float32, device=device) if need_bias else None
    d_h = torch.zeros(2 * rows if need_h else 0, width, dtype=torch.float32, device=device)
    d_W = torch.zeros_like(W_U, memory_format=torch.contiguous_format) if need_W else W_U.new_empty(0)
    like = W_U if bias is None else bias
    d_bias = like.new_empty(vocabulary if need_bias else 0)
    shared: dict[str, Any] = {
        "of": streams(h[0], h[1:], W_U, bias),
        "targets": targets,
        "rows": torch.empty(7, rows, dtype=torch.float32, device=device),
        "softcap": None if softcap is None else float(softcap),
        "SPECIAL": special(architecture(device)),
    }
    losses = Losses(*(value.contiguous() for value in (ce_p, ce_q, kl, grad_ce_p, grad_ce_q, grad_kl)))
    launch(rows_kernel, (rows,), device, losses=losses, ignore_index=ignore_index, BV=16, BD=64, **shared)
    tile = tile_for(h_p, config, FLOAT32_PRODUCT)
    for first in range(0, vocabulary if rows else 0, words):
        count = min(words, vocabulary - first)
        launch(
            slopes_kernel,
            (triton.cdiv(rows, config.BM), triton.cdiv(count, config.BN)),
            device,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            slab=slab,
            bias_sums=sums,
            first_word=first,
            WORDS=words,
            TILE=tile,
            **shared,
        )
        dz = slab.view(2 * rows, words)[:, :count]
        if need_h:
            _accumulate(dz, W_U[first : first + count].t(), d_h, add=True)
        if need_W:
            _accumulate(dz.t(), h.view(2 * rows, width).t(), d_W[first : first + count], add=False)
        if sums is not None:
            d_bias[first : first + count] = sums[:, :count].sum(0)
    if need_bias and not rows:
        d_bias.zero_()
    d_hp, d_hq = d_h.to(h_p.dtype).view(2, -1, width) if need_h else (h_p.new_empty(0), h_q.new_empty(0))
    return d_hp, d_hq, d_W, d_bias
