"""bias: what is added to a product, with pre_bias folded in: b_enc - W_enc pre_bias, in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.launch import architecture, launch


@triton.jit
def fold_kernel(  # type: ignore[no-untyped-def]
    W,
    bias,
    pre_bias,
    out,
    F,
    D,
    stride_wf,
    stride_wd,
    stride_bias,
    stride_pre,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
):
    latent = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    acc = tl.zeros((ROWS, BD), tl.float32)
    for start in range(0, D, BD):
        column = start + tl.arange(0, BD)
        place = latent.to(tl.int64)[:, None] * stride_wf + column[None, :] * stride_wd
        w = tl.load(W + place, mask=(latent < F)[:, None] & (column < D)[None, :], other=0.0)
        p = tl.load(pre_bias + column * stride_pre, mask=column < D, other=0.0)
        acc += w.to(tl.float32) * p.to(tl.float32)[None, :]
    folded = -tl.sum(acc, 1)
    if bias is not None:
        folded += tl.load(bias + latent * stride_bias, mask=latent < F, other=0.0).to(tl.float32)
    tl.store(out + latent, folded, mask=latent < F)


def folded(W: Tensor, bias: Tensor | None, pre_bias: Tensor | None) -> Tensor | None:
    """[F] float32, or None for nothing to add. W: [F, d]; bias: [F]; pre_bias: [d]."""
    if pre_bias is None:
        return None if bias is None else bias.float().contiguous()
    config = configs.lookup("rescore", architecture(W.device), W.dtype, W.shape[1])
    out = torch.empty(W.shape[0], dtype=torch.float32, device=W.device)
    launch(
        fold_kernel,
        (triton.cdiv(W.shape[0], config.BK),),
        W.device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        W=W,
        bias=bias,
        pre_bias=pre_bias,
        out=out,
        F=W.shape[0],
        D=W.shape[1],
        stride_wf=W.stride(0),
        stride_wd=W.stride(1),
        stride_bias=0 if bias is None else bias.stride(0),
        stride_pre=pre_bias.stride(0),
        ROWS=config.BK,
        BD=config.BN,
    )
    return out
