"""encode_topk: the k largest pre-activations of a sparse encoder, without the [tokens, latents] matrix."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor

from saekernels.backends import registry
from saekernels.ops import _check
from saekernels.ops._library import Op, padded, register, reshaped, rows_of, values_dtype
from saekernels.ops.encoder_gradient import encoder_gradient
from saekernels.ops.prepare import PreparedWeights, block_of
from saekernels.ops.sparse_maps import uniform_offsets


class TopKCodes(NamedTuple):
    """values [..., k] in the dtype of x; indices [..., k] int32."""

    values: Tensor
    indices: Tensor


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None = None,
    *,
    k: int,
    pre_bias: Tensor | None = None,
    scale: Tensor | None = None,
    activation: str = "relu",
    precision: str = "exact",
    prepared: PreparedWeights | None = None,
    hint: float | Tensor | None = None,
    sparse_grad: bool = False,
    wide: bool = False,
    backend: str | None = None,
) -> TopKCodes:
    """The k latents with the largest pre-activation (x - pre_bias) @ W_enc.T + b_enc, per row.

    Scores are descending, ties by ascending index; NaN ranks above +inf, -0.0 ties with +0.0. Indices are unique and in
    range. A row's result is bitwise the same whatever else is in the batch.

    Args:
        x: [..., d], float32, bfloat16, float16, or float64 (reference backend only).
        W_enc: [F, d], latents are rows; x's dtype.
        b_enc: [F], x's dtype or float32.
        k: 1 <= k <= F.
        pre_bias: [d], subtracted from x in float32; x's dtype or float32.
        scale: [F], x's dtype or float32, above 0: what is compared is a pre-activation times its latent's scale, such
            as the norm of its decoder row. Values are the pre-activations all the same; no gradient reaches the scale.
            That it is above 0 is checked on the CPU alone.
        activation: "relu" selects on the pre-activation and returns max(value, 0), so fewer than k values may be
            nonzero; "none" keeps signs; "abs" selects on the magnitude and keeps signs.
        precision: "exact" (float32 accumulation over the inputs as given). "fast": values are what tensor cores
            accumulate, tf32 products for float32. "screened": 8-bit products choose the candidates, of which a true one
            is missed with a small chance, and float32 scores them. The CPU's backends answer all three exactly.
        prepared: `prepare(W_enc)`, for speed; the result is the same without it.
        hint: [...] or a number: a guess of what at least k scores of a row (magnitudes for "abs") reach, such as the
            k-th of similar rows before. Spares a GPU the search for one; a wrong one costs time. float32 or x's dtype.
        sparse_grad: the gradient of W_enc is a sparse COO tensor of the rows of selected latents, each once, for
            optimizers that take one (`torch.optim.SparseAdam`), as in `torch.nn.Embedding`.
        wide: values come back as they were accumulated, in float32 (float64 for float64), by which the codes of
            several parts of an encoder can be merged exactly.
        backend: its name (see `saekernels info`), or None for the best one that serves the inputs.

    Returns:
        TopKCodes: values [..., k] in x's dtype, rounded after ordering (unless `wide`), and indices [..., k] int32.
        Values are differentiable with respect to x, W_enc, b_enc and pre_bias.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    return TopKCodes(
        *_encode_topk(
            x,
            W_enc,
            b_enc,
            pre_bias,
            block_of(prepared, W_enc, pre_bias, precision, backend),
            _hint_tensor(hint, x, backend),
            scale,
            k=k,
            activation=activation,
            precision=precision,
            sparse_grad=sparse_grad,
            wide=wide,
            backend=backend,
        )
    )


def _hint_tensor(hint: float | Tensor | None, x: Tensor, backend: str | None) -> Tensor | None:
    if hint is None or isinstance(hint, Tensor):
        return hint
    _check.scalars(backend, hint=(hint, float))
    _check.tensor("x", x)
    return torch.full((), float(hint), dtype=torch.float32, device=x.device)


@dataclass(slots=True)
class EncodeTopK(Op):
    """saekernels::encode_topk. `prepared` is a block of `PreparedWeights`, `hint` one per row of x, or []."""

    MATRICES = ("x", "W_enc")
    ROWS = ("x", "hint")

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor | None = None
    pre_bias: Tensor | None = None
    prepared: Tensor | None = None
    hint: Tensor | None = None
    scale: Tensor | None = None
    _: KW_ONLY
    k: int | SymInt
    activation: str = "relu"
    precision: str = "exact"
    sparse_grad: bool = False
    wide: bool = False
    backend: str | None = None

    def check(self) -> None:
        x, hint = self.x, self.hint
        _check.encoder(x, self.W_enc, self.b_enc, self.pre_bias, self.precision)
        _check.k_of(self.k, self.W_enc.shape[0], "W_enc")
        _check.choice("activation", self.activation, _check.ACTIVATIONS)
        _check.vector_beside("scale", self.scale, ("F", self.W_enc.shape[0]), x)
        if hint is not None:
            _check.beside("hint", hint, x)
            if hint.dim() and hint.shape != x.shape[:-1]:
                need = f"{list(x.shape[:-1])}, one per row of x, or []"
                raise ValueError(f"hint: got shape {list(hint.shape)}, need {need}")

    def compute(self) -> tuple[Tensor, Tensor]:
        x, hint = self.x, self.hint
        _check.above_zero("scale", self.scale)
        kernels = registry.select("encode_topk", x.device.type, x.dtype, self.backend)
        values, indices = kernels.encode_topk(
            rows_of(x),
            self.W_enc,
            self.b_enc,
            self.pre_bias,
            self.k,
            self.activation,
            self.prepared,
            hint=hint if hint is None or not hint.dim() else hint.reshape(-1),
            precision=self.precision,
            out=values_dtype(x.dtype, self.wide),
            scale=self.scale,
        )
        shape = (*x.shape[:-1], self.k)
        return reshaped(values, shape), reshaped(indices, shape)

    def empty(self) -> tuple[Tensor, Tensor]:
        x, shape = self.x, (*self.x.shape[:-1], self.k)
        return x.new_empty(shape, dtype=values_dtype(x.dtype, self.wide)), x.new_empty(shape, dtype=torch.int32)

    def save(self, ctx: Any, output: tuple[Tensor, Tensor]) -> None:
        values, indices = output
        ctx.mark_non_differentiable(indices)
        ctx.k, ctx.sparse_grad, ctx.backend = self.k, self.sparse_grad, self.backend
        # A mask rather than the values, which the caller may change in place.
        closed = values <= 0 if self.activation == "relu" else None
        ctx.save_for_backward(self.x, self.W_enc, self.b_enc, self.pre_bias, indices, closed)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        *encoder, indices, closed = ctx.saved_tensors
        x = encoder[0]
        grad = grads[0].to(x.dtype)
        grad = grad if closed is None else grad.masked_fill(closed, 0.0)
        offsets = uniform_offsets(math.prod(x.shape[:-1]), ctx.k, x.device)
        needs = padded(ctx.needs_input_grad, 4, False)[:4]
        found = encoder_gradient(ctx, encoder, grad.reshape(-1), indices.reshape(-1), offsets, needs)
        return *found, None, None, None


_encode_topk = register("encode_topk", EncodeTopK)
