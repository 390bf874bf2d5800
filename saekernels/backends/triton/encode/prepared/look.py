"""look: whether weights are still those that a block was made from, asked and answered on the device.

The host sees the version counter; writes past it (`W.data.copy_(other)`) it cannot see without waiting for the device.
So every use compares up to 4,096 elements spread evenly over W_enc, and all of pre_bias, with those of the block,
and what makes the block is started again behind it, to end at once where nothing differs.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton.launch import launch

SAMPLES = 4096


@triton.jit
def look_kernel(  # type: ignore[no-untyped-def]
    W,
    pre_bias,
    samples,
    biases,
    stale,
    D,
    number,
    step,
    stride_wf,
    stride_wd,
    stride_pre,
    SAMPLES: tl.constexpr,
    BD: tl.constexpr,
):
    at = tl.arange(0, SAMPLES)
    place = at.to(tl.int64) * step
    now = tl.load(W + place // D * stride_wf + place % D * stride_wd, mask=at < number, other=0.0)
    # Bits, by which a NaN is what it was.
    bits = now.to(tl.float32).to(tl.int32, bitcast=True)
    differ = tl.sum((bits != tl.load(samples + at)).to(tl.int32), 0)
    tl.store(samples + at, bits)
    if pre_bias is not None:
        for start in range(0, D, BD):
            column = start + tl.arange(0, BD)
            value = tl.load(pre_bias + column * stride_pre, mask=column < D, other=0.0)
            kept = tl.load(biases + column, mask=column < D, other=0)
            value_bits = value.to(tl.float32).to(tl.int32, bitcast=True)
            differ += tl.sum((value_bits != kept).to(tl.int32), 0)
            tl.store(biases + column, value_bits, mask=column < D)
    tl.store(stale, differ)


@functools.cache
def step_of(latents: int, depth: int) -> int:
    """How many elements lie between two that are looked at: odd, and no factor in common with a row's length."""
    step = -(-latents * depth // SAMPLES) | 1
    while math.gcd(step, depth) != 1:
        step += 2
    return step


def look(W: Tensor, pre_bias: Tensor | None, samples: Tensor, biases: Tensor | None) -> Tensor:
    """[1] int32, 0 where W [F, d] and pre_bias [d] have the elements kept; which are replaced by the present ones.

    Args:
        samples, biases: [SAMPLES] and [d] int32, the bits of float32 values; `biases` where there is a pre_bias.
    """
    latents, depth = W.shape
    step = step_of(latents, depth)
    stale = torch.empty(1, dtype=torch.int32, device=W.device)
    launch(
        look_kernel,
        (1,),
        W.device,
        num_warps=8,
        W=W,
        pre_bias=pre_bias,
        samples=samples,
        biases=biases,
        stale=stale,
        D=depth,
        number=-(-latents * depth // step),
        step=step,
        stride_wf=W.stride(0),
        stride_wd=W.stride(1),
        stride_pre=0 if pre_bias is None else pre_bias.stride(0),
        SAMPLES=SAMPLES,
        BD=1024,
    )
    return stale
