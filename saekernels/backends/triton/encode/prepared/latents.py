"""latents: one number for each row of W_enc: its product with pre_bias, which biases take up, or its norm."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.encode.bounds import INFLATION
from saekernels.backends.triton.failed import programs
from saekernels.backends.triton.launch import architecture, launch


@triton.jit
def latents_kernel(  # type: ignore[no-untyped-def]
    W,
    bias,
    pre_bias,
    out,
    stale,
    F,
    D,
    stride_wf,
    stride_wd,
    stride_bias,
    stride_pre,
    inflation,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
):
    end = F
    if stale is not None:
        end = tl.where(tl.load(stale) == 0, 0, F)
    for first in range(tl.program_id(0) * ROWS, end, tl.num_programs(0) * ROWS):
        latent = first + tl.arange(0, ROWS)
        acc = tl.zeros((ROWS, BD), tl.float32)
        for start in range(0, D, BD):
            column = start + tl.arange(0, BD)
            place = latent.to(tl.int64)[:, None] * stride_wf + column[None, :] * stride_wd
            w = tl.load(W + place, mask=(latent < F)[:, None] & (column < D)[None, :], other=0.0).to(tl.float32)
            if pre_bias is None:
                acc += w * w
            else:
                p = tl.load(pre_bias + column * stride_pre, mask=column < D, other=0.0)
                acc += w * p.to(tl.float32)[None, :]
        found = tl.sqrt(tl.sum(acc, 1)) * inflation if pre_bias is None else -tl.sum(acc, 1)
        if bias is not None:
            found += tl.load(bias + latent * stride_bias, mask=latent < F, other=0.0).to(tl.float32)
        tl.store(out + latent, found, mask=latent < F)


def folded(W: Tensor, bias: Tensor | None, pre_bias: Tensor | None, product: Tensor | None = None) -> Tensor | None:
    """What is added to x W^T, b_enc - W_enc pre_bias: [F] float32, or None for nothing.

    Args:
        W, bias, pre_bias: [F, d], [F], [d].
        product: what `products` makes of W and pre_bias, if that is at hand; the sum has the same bits.
    """
    if pre_bias is None:
        return None if bias is None else bias.float().contiguous()
    if product is not None:
        return product if bias is None else product + bias
    out = torch.empty(W.shape[0], dtype=torch.float32, device=W.device)
    _start(W, bias, pre_bias, out, None)
    return out


def products(W: Tensor, pre_bias: Tensor, *, out: Tensor, stale: Tensor | None = None) -> None:
    """Write - W pre_bias to `out` [F] float32; with a `stale` [1] only if that is not 0 on the device."""
    _start(W, None, pre_bias, out, stale)


def norms(W: Tensor, *, out: Tensor | None = None, stale: Tensor | None = None) -> Tensor:
    """[F] float32, the Euclidean norms of rows, from above, in `out` if that is given; a `stale` as in `products`."""
    out = torch.empty(W.shape[0], dtype=torch.float32, device=W.device) if out is None else out
    _start(W, None, None, out, stale)
    return out


def _start(W: Tensor, bias: Tensor | None, pre_bias: Tensor | None, out: Tensor, stale: Tensor | None) -> None:
    config = configs.lookup("latents", architecture(W.device), W.dtype, W.shape[1])
    blocks = triton.cdiv(W.shape[0], config.BK)
    launch(
        latents_kernel,
        # Those that have nothing to do as a rule are few, and would have to go through all.
        (blocks if stale is None else min(blocks, programs(W.device)),),
        W.device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        W=W,
        bias=bias,
        pre_bias=pre_bias,
        out=out,
        stale=stale,
        F=W.shape[0],
        D=W.shape[1],
        stride_wf=W.stride(0),
        stride_wd=W.stride(1),
        stride_bias=0 if bias is None else bias.stride(0),
        stride_pre=0 if pre_bias is None else pre_bias.stride(0),
        inflation=INFLATION,
        ROWS=config.BK,
        BD=config.BN,
    )
