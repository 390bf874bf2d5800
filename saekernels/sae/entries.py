"""Chosen entries of an encoder's pre-activations: known values, with the gradients that they have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from saekernels.ops import TopKCodes, encode_topk
from saekernels.ops.encode_threshold import CsrCodes
from saekernels.ops.encoder_gradient import encoder_gradient
from saekernels.ops.sparse_maps import uniform_offsets


def positive(scale: Tensor) -> Tensor:
    """A scale [F] with none below 0 as the encoders take it: in at least float32, 0 as the least normal number."""
    scale = scale.to(torch.promote_types(scale.dtype, torch.float32))
    return scale.clamp(min=torch.finfo(scale.dtype).tiny)


def with_gradients(
    codes: CsrCodes, x: Tensor, W_enc: Tensor, b_enc: Tensor | None, pre_bias: Tensor | None = None
) -> Tensor:
    """[nnz]: the values of codes that were found without gradients, differentiable through these entries alone.

    So a search may look at more than is kept, and the backward pass sees what is kept. Each value has to be its entry's
    pre-activation (x - pre_bias) @ W_enc.T + b_enc; shapes as in `saekernels.encode_threshold`.
    """
    values, indices, offsets = codes
    return _Entries.apply(x, W_enc, b_enc, pre_bias, values, indices, offsets)  # type: ignore[no-untyped-call]


def encode_among(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    latents: Tensor,
    *,
    k: int,
    pre_bias: Tensor | None = None,
    scale: Tensor | None = None,
    activation: str = "none",
) -> TopKCodes:
    """The k largest pre-activations of each row among some latents, signed, as indices of the whole encoder.

    Args:
        x: [T, d].
        W_enc, b_enc, pre_bias: of the whole encoder, as in `saekernels.encode_topk`. Gradients reach all of them
            through the entries that are kept, without a copy of W_enc's rows that is differentiated.
        latents: [n] int64, each once.
        k: 1 <= k <= n.
        scale: [F], none below 0, or None: what is compared is a pre-activation times its latent's scale.
        activation: "abs" to compare magnitudes.

    Returns:
        TopKCodes: values [T, k], the pre-activations themselves, and indices [T, k] int32, unordered.
    """
    with torch.no_grad():
        rows, bias = W_enc[latents], None if b_enc is None else b_enc[latents]
        of_rows = None if scale is None else positive(scale[latents])
        values, chosen = encode_topk(x, rows, bias, k=k, pre_bias=pre_bias, scale=of_rows, activation=activation)
        indices = latents[chosen.long()].int()
    csr = CsrCodes(values.flatten(), indices.flatten(), uniform_offsets(len(x), k, x.device))
    return TopKCodes(with_gradients(csr, x, W_enc, b_enc, pre_bias).view_as(values), indices)


class _Entries(Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *encoder, values, indices, offsets = given
        ctx.save_for_backward(*encoder, indices, offsets)
        ctx.sparse_grad, ctx.backend = False, None
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        *encoder, indices, offsets = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        return *encoder_gradient(ctx, encoder, grads[0].contiguous(), indices, offsets, needs), None, None, None
