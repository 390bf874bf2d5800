"""encoder_inputs: what the screen multiplies for each precision, and what candidates are scored from afterwards."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saekernels.backends.triton.encode import bounds, quantise
from saekernels.backends.triton.encode.operands import Operands, Vectors
from saekernels.backends.triton.encode.prepared.block import parts_of
from saekernels.backends.triton.encode.prepared.latents import folded, norms


class Encoder(NamedTuple):
    """An encoder's inputs, ready for the kernels.

    Attributes:
        screen: what the screen multiplies; its own scores are the answer unless it is `rescored`.
        x, W, bias: [T, d], [F, d], [F] float32 or None: what scores mean, in the types of the inputs.
        factor: [F] float32 or None, the encoder's scale: what is compared is a score times it.
        growth: how many times more candidates than an exact screen this one lets through.
    """

    screen: Operands
    x: Tensor
    W: Tensor
    bias: Tensor | None
    factor: Tensor | None
    growth: float

    def exactly(self) -> Operands:
        """Operands whose product needs no rescoring; scores are not multiplied by the scale."""
        return Operands(self.x, self.W, Vectors(self.bias), float32_product=self.screen.float32_product)


def encoder(
    x: Tensor,
    W: Tensor,
    bias: Tensor | None,
    pre_bias: Tensor | None,
    precision: str,
    scale: Tensor | None = None,
    prepared: Tensor | None = None,
) -> Encoder:
    """Ready x [T, d], W [F, d], bias [F], pre_bias [d], scale [F] for a precision, with a block of `prepare` or none.

    exact: float32 is screened in tf32 and scored in float32; 16-bit types multiply exactly and are summed in float32 as
    they are. fast: float32 in tf32. screened: 8-bit products, then candidates scored in float32.
    """
    if x.dtype == torch.float32 and pre_bias is not None:
        x, pre_bias = x - pre_bias.float(), None
    x = x if x.stride(1) == 1 else x.contiguous()
    made = parts_of(prepared, W, pre_bias, precision)
    bias = folded(W, bias, pre_bias, made.product)
    screen, growth = Operands(x, W, Vectors(bias)), 1.0
    if precision == "screened":
        screen, growth = quantise.screened(x, W, bias, made.eight_bit), quantise.GROWTH
    elif x.dtype == torch.float32 and precision == "exact":
        norm = norms(W) if made.norm is None else made.norm
        screen, growth = bounds.tf32(x, W, bias, norm), bounds.tf32_growth(x.shape[1])
    factor = None if scale is None else scale.float().contiguous()
    return Encoder(screen if factor is None else bounds.scaled(screen, factor), x, W, bias, factor, growth)
