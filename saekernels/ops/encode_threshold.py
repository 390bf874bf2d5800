"""encode_threshold: every latent above its threshold, in CSR, without the [tokens, latents] matrix."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekernels.backends import registry
from saekernels.ops import _check
from saekernels.ops._library import Op, padded, register, rows_of, values_dtype
from saekernels.ops.encoder_gradient import encoder_gradient
from saekernels.ops.prepare import PreparedWeights, block_of


class CsrCodes(NamedTuple):
    """values [nnz] in the dtype of x; indices [nnz] int32; offsets [T+1] int64.

    Row t owns offsets[t] .. offsets[t+1].
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor


def encode_threshold(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None = None,
    threshold: float | Tensor = 0.0,
    *,
    pre_bias: Tensor | None = None,
    scale: Tensor | None = None,
    precision: str = "exact",
    prepared: PreparedWeights | None = None,
    sparse_grad: bool = False,
    wide: bool = False,
    backend: str | None = None,
) -> CsrCodes:
    """The latents whose pre-activation (x - pre_bias) @ W_enc.T + b_enc is strictly above their threshold.

    Threshold 0 is a ReLU encoder; one threshold per latent a JumpReLU; one for all a BatchTopK at inference. The value
    is the pre-activation itself: a negative threshold lets negative values through (gates use that; clamp thresholds at
    0 for relu(pre) * (pre > threshold)). A NaN pre-activation is kept.

    Args:
        x: [..., d], float32, bfloat16, float16, or float64 (reference backend only). T below is the number of rows.
        W_enc: [F, d]; x's dtype.
        b_enc: [F], x's dtype or float32.
        threshold: a number, a scalar tensor, or [F]; x's dtype or float32. Not differentiable. Nothing but NaN passes
            a NaN.
        pre_bias: [d], subtracted from x in float32.
        scale: [F], as in `encode_topk`: a pre-activation times it has to be above the threshold.
        precision: "exact", "fast" or "screened", as in `encode_topk`.
        prepared: `prepare(W_enc)`, for speed; the result is the same without it.
        sparse_grad: the gradient of W_enc is a sparse COO tensor of the rows of selected latents, each once, for
            optimizers that take one (`torch.optim.SparseAdam`), as in `torch.nn.Embedding`.
        wide: values come back as they were accumulated, in float32 (float64 for float64), so that what is made of them
            is rounded once.
        backend: its name (see `saekernels info`), or None for the best one that serves the inputs.

    Returns:
        CsrCodes: values [nnz] in x's dtype (unless `wide`), indices [nnz] int32 ascending within a row, offsets
        [T+1] int64. Values are differentiable with respect to x, W_enc, b_enc and pre_bias.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    if not isinstance(threshold, Tensor):
        _check.scalars(backend, threshold=(threshold, float))
        _check.tensor("x", x)
        dtype = torch.promote_types(x.dtype, torch.float32) if x.dtype.is_floating_point else torch.float32
        threshold = torch.full((), float(threshold), dtype=dtype, device=x.device)
    return CsrCodes(
        *_encode_threshold(
            x,
            W_enc,
            b_enc,
            threshold,
            pre_bias,
            block_of(prepared, W_enc),
            scale,
            precision=precision,
            sparse_grad=sparse_grad,
            wide=wide,
            backend=backend,
        )
    )


@dataclass(slots=True)
class EncodeThreshold(Op):
    """saekernels::encode_threshold. `prepared` is a block of `PreparedWeights`."""

    MATRICES = ("x", "W_enc")
    DYNAMIC_SHAPE = True

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor | None
    threshold: Tensor
    pre_bias: Tensor | None = None
    prepared: Tensor | None = None
    scale: Tensor | None = None
    _: KW_ONLY
    precision: str = "exact"
    sparse_grad: bool = False
    wide: bool = False
    backend: str | None = None

    def check(self) -> None:
        x, threshold = self.x, self.threshold
        _check.encoder(x, self.W_enc, self.b_enc, self.pre_bias, self.precision)
        _check.vector_beside("scale", self.scale, ("F", self.W_enc.shape[0]), x)
        if threshold.dim():
            _check.vector_beside("threshold", threshold, ("F", self.W_enc.shape[0]), x)
        else:
            _check.beside("threshold", threshold, x)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        _check.above_zero("scale", self.scale)
        kernels = registry.select("encode_threshold", self.x.device.type, self.x.dtype, self.backend)
        return kernels.encode_threshold(
            rows_of(self.x),
            self.W_enc,
            self.b_enc,
            self.pre_bias,
            self.threshold,
            self.prepared,
            precision=self.precision,
            out=values_dtype(self.x.dtype, self.wide),
            scale=self.scale,
        )

    def empty(self) -> tuple[Tensor, Tensor, Tensor]:
        entries = torch.library.get_ctx().new_dynamic_size()
        rows = self.x.reshape(-1, self.x.shape[-1]).shape[0]
        return (
            self.x.new_empty(entries, dtype=values_dtype(self.x.dtype, self.wide)),
            self.x.new_empty(entries, dtype=torch.int32),
            self.x.new_empty(rows + 1, dtype=torch.int64),
        )

    def save(self, ctx: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, indices, offsets = output
        ctx.mark_non_differentiable(indices, offsets)
        ctx.sparse_grad, ctx.backend = self.sparse_grad, self.backend
        ctx.save_for_backward(self.x, self.W_enc, self.b_enc, self.pre_bias, indices, offsets)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        indices, offsets = ctx.saved_tensors[4:]
        x, W_enc, b_enc, _, pre_bias = padded(ctx.needs_input_grad, 5, False)[:5]
        needs = (x, W_enc, b_enc, pre_bias)
        d_x, d_W, d_b, d_pre = encoder_gradient(ctx, grads[0].to(ctx.saved_tensors[0].dtype), indices, offsets, needs)
        return d_x, d_W, d_b, None, d_pre, None, None


_encode_threshold = register("encode_threshold", EncodeThreshold)
