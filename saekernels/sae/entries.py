"""Chosen entries of an encoder's pre-activations: known values, with the gradients that they have."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from saekernels.ops.encode_threshold import CsrCodes
from saekernels.ops.encoder_gradient import encoder_gradient


def with_gradients(
    codes: CsrCodes, x: Tensor, W_enc: Tensor, b_enc: Tensor | None, pre_bias: Tensor | None = None
) -> Tensor:
    """[nnz]: the values of codes that were found without gradients, differentiable through these entries alone.

    So a search may look at more than is kept, and the backward pass sees what is kept. Each value has to be its entry's
    pre-activation (x - pre_bias) @ W_enc.T + b_enc; shapes as in `saekernels.encode_threshold`.
    """
    values, indices, offsets = codes
    return _Entries.apply(x, W_enc, b_enc, pre_bias, values, indices, offsets)  # type: ignore[no-untyped-call]


class _Entries(Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *encoder, values, indices, offsets = given
        ctx.save_for_backward(*encoder, indices, offsets)
        ctx.sparse_grad, ctx.backend = False, None
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        indices, offsets = ctx.saved_tensors[4:]
        needs = ctx.needs_input_grad[:4]
        return *encoder_gradient(ctx, grads[0].contiguous(), indices, offsets, needs), None, None, None
