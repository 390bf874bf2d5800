"""decode and decode_csr: sparse codes times the decoder's rows, without a [tokens, k, d_out] gather."""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from saekernels.backends import registry
from saekernels.ops import _check
from saekernels.ops._library import OPS, Op, padded, register, values_dtype
from saekernels.ops.encoder_gradient import weight_gradient
from saekernels.ops.sparse_maps import uniform_offsets


def decode(
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor | None = None,
    *,
    sparse_grad: bool = False,
    wide: bool = False,
    backend: str | None = None,
) -> Tensor:
    """out[...] = sum over j of values[..., j] * W_dec[indices[..., j]] + b_dec, summed in the order of j in float32.

    Args:
        values: [..., k], float32, bfloat16, float16, or float64 (reference backend only).
        indices: [..., k], int32 or int64, each in [0, F); repeats add up.
        W_dec: [F, d_out], latents are rows; the dtype of values.
        b_dec: [d_out], that dtype or float32.
        sparse_grad: the gradient of W_dec is a sparse COO tensor of the rows used, as in `encode_topk`.
        wide: the sums come back as they were accumulated, in float32 (float64 for float64).
        backend: its name (see `saekernels info`), or None for the best one that serves the inputs.

    Returns:
        [..., d_out] in the dtype of values (unless `wide`); differentiable with respect to values, W_dec and b_dec.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name. Indices are
            checked against F on the CPU only, where that needs no synchronisation.
    """
    return _decode(values, indices, W_dec, b_dec, sparse_grad=sparse_grad, wide=wide, backend=backend)


def decode_csr(
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    W_dec: Tensor,
    b_dec: Tensor | None = None,
    *,
    sparse_grad: bool = False,
    wide: bool = False,
    backend: str | None = None,
) -> Tensor:
    """`decode` for codes with any number of entries per row: row t owns entries offsets[t] .. offsets[t+1].

    Args:
        values: [nnz], float32, bfloat16, float16, or float64 (reference backend only).
        indices: [nnz], int32 or int64, each in [0, F).
        offsets: [T+1] int64, from 0 to nnz, never falling.
        W_dec: [F, d_out]; the dtype of values.
        b_dec: [d_out], that dtype or float32.
        sparse_grad: the gradient of W_dec is a sparse COO tensor of the rows used, as in `encode_topk`.
        wide: the sums come back as they were accumulated, in float32 (float64 for float64).
        backend: its name (see `saekernels info`), or None for the best one that serves the inputs.

    Returns:
        [T, d_out] in the dtype of values (unless `wide`); differentiable with respect to values, W_dec and b_dec.

    Raises:
        TypeError, ValueError: as `decode`; offsets' data too is checked on the CPU only.
    """
    return _decode_csr(values, indices, offsets, W_dec, b_dec, sparse_grad=sparse_grad, wide=wide, backend=backend)


@dataclass(slots=True)
class DecodeCsr(Op):
    """saekernels::decode_csr."""

    MATRICES = ("values", "W_dec")

    values: Tensor
    indices: Tensor
    offsets: Tensor
    W_dec: Tensor
    b_dec: Tensor | None = None
    _: KW_ONLY
    sparse_grad: bool = False
    wide: bool = False
    backend: str | None = None

    def check(self) -> None:
        values, indices, W_dec = self.values, self.indices, self.W_dec
        _check_entries(values, indices)
        _check_decoder(values, W_dec, self.b_dec)
        _check.offsets_of(self.offsets)
        if values.dim() != 1:
            raise ValueError(f"values: got shape {list(values.shape)}, need [nnz]")

    def compute(self) -> Tensor:
        values, W_dec = self.values, self.W_dec
        kernels = registry.select("decode", values.device.type, values.dtype, self.backend)
        entries = _check.entries(kernels, self.indices, self.offsets, W_dec.shape[0])
        return kernels.decode(values, entries, self.offsets, W_dec, self.b_dec, values_dtype(W_dec.dtype, self.wide))

    def empty(self) -> Tensor:
        W_dec = self.W_dec
        shape = (self.offsets.shape[0] - 1, W_dec.shape[1])
        return W_dec.new_empty(shape, dtype=values_dtype(W_dec.dtype, self.wide))

    def save(self, ctx: Any, output: Tensor) -> None:
        ctx.sparse_grad, ctx.backend = self.sparse_grad, self.backend
        ctx.save_for_backward(self.values, self.indices, self.offsets, self.W_dec, self.b_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        values, indices, offsets, W_dec, b_dec = ctx.saved_tensors
        needs = padded(ctx.needs_input_grad, 5, False)
        grad = grads[0].to(W_dec.dtype)
        d_values = OPS.gather_dot(grad, W_dec, indices, offsets, backend=ctx.backend) if needs[0] else None
        d_W = d_b = None
        if needs[3]:
            d_W = weight_gradient(values, indices, offsets, grad, W_dec.shape[0], ctx.sparse_grad, ctx.backend)
        if needs[4]:
            d_b = grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(b_dec.dtype)
        return d_values, None, None, d_W, d_b


@dataclass(slots=True)
class Decode(Op):
    """saekernels::decode, which is decode_csr of codes with equally many entries in each row."""

    values: Tensor
    indices: Tensor
    W_dec: Tensor
    b_dec: Tensor | None = None
    _: KW_ONLY
    sparse_grad: bool = False
    wide: bool = False
    backend: str | None = None

    def check(self) -> None:
        _check_entries(self.values, self.indices)

    def compute(self) -> Tensor:
        values, options = self.values, {"sparse_grad": self.sparse_grad, "wide": self.wide, "backend": self.backend}
        rows = values.shape[:-1]
        offsets = uniform_offsets(math.prod(rows), values.shape[-1], values.device)
        flat = (values.reshape(-1), self.indices.reshape(-1), offsets)
        return OPS.decode_csr(*flat, self.W_dec, self.b_dec, **options).view(*rows, self.W_dec.shape[1])

    def at_once(self) -> Tensor:
        values, indices, W_dec = self.values, self.indices, self.W_dec
        _check_decoder(values, W_dec, self.b_dec)
        kernels = registry.select("decode", values.device.type, values.dtype, self.backend)
        *rows, k = values.shape
        offsets = _plain_offsets(rows[0] if len(rows) == 1 else math.prod(rows), k, values.device)
        entries = _check.entries(kernels, indices, offsets, W_dec.shape[0])
        out = kernels.decode(values, entries, offsets, W_dec, self.b_dec, values_dtype(values.dtype, self.wide))
        return out if len(rows) == 1 else out.resize_(*rows, W_dec.shape[1])


def _plain_offsets(rows: int, k: int, device: torch.device) -> Tensor:
    """`uniform_offsets`; those of few rows on the CPU are kept, for making them takes a fifth of a call's time.

    None of a GPU's: another stream would not wait for them, and a graph that is captured would own them.
    """
    return _kept_offsets(rows, k) if rows <= 256 and device.type == "cpu" else uniform_offsets(rows, k, device)


@functools.lru_cache(maxsize=64)
def _kept_offsets(rows: int, k: int) -> Tensor:
    return uniform_offsets(rows, k, torch.device("cpu"))


def _check_decoder(values: Tensor, W_dec: Tensor, b_dec: Tensor | None) -> None:
    _check.matrix("W_dec", W_dec, "F", "d_out")
    _check.dtype_of("W_dec", W_dec, "values", values)
    _check.vector_beside("b_dec", b_dec, ("d_out", W_dec.shape[1]), W_dec)


def _check_entries(values: Tensor, indices: Tensor) -> None:
    _check.dtype_in("values", values, _check.FLOATS)
    _check.dtype_in("indices", indices, _check.INDEX_DTYPES)
    if values.dim() < 1:
        raise ValueError("values: got a scalar, need [..., k]")
    if values.shape != indices.shape:
        raise ValueError(f"indices: got shape {list(indices.shape)}, need {list(values.shape)}, the shape of values")


_decode_csr = register("decode_csr", DecodeCsr)
_decode = register("decode", Decode)
