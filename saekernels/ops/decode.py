"""decode and decode_csr: sparse codes times the decoder's rows, without a [tokens, k, d_out] gather."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from saekernels.backends import registry
from saekernels.ops import _check
from saekernels.ops._library import LIBRARY, define, differentiable, padded, values_dtype
from saekernels.ops.encoder_gradient import weight_gradient
from saekernels.ops.sparse_maps import save_tensors, uniform_offsets

_ops = torch.ops.saekernels


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
    _check.tensors(values=values, indices=indices, W_dec=W_dec, b_dec=b_dec)
    _check.scalars(backend, sparse_grad=(sparse_grad, bool), wide=(wide, bool))
    # What the op of this name does, without the dispatcher's share of the time of a single token.
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
    _check.tensors(values=values, indices=indices, offsets=offsets, W_dec=W_dec, b_dec=b_dec)
    _check.scalars(backend, sparse_grad=(sparse_grad, bool), wide=(wide, bool))
    return _ops.decode_csr(values, indices, offsets, W_dec, b_dec, sparse_grad=sparse_grad, wide=wide, backend=backend)


def _check_entries(values: Tensor, indices: Tensor) -> None:
    _check.tensor("values", values)
    _check.tensor("indices", indices)
    _check.dtype_in("values", values, _check.FLOATS)
    _check.dtype_in("indices", indices, _check.INDEX_DTYPES)
    if values.dim() < 1:
        raise ValueError("values: got a scalar, need [..., k]")
    if values.shape != indices.shape:
        raise ValueError(f"indices: got shape {list(indices.shape)}, need {list(values.shape)}, the shape of values")


def _check_decoder(values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor | None) -> None:
    _check_entries(values, indices)
    _check.tensor("W_dec", W_dec)
    _check.matrix("W_dec", W_dec, "F", "d_out")
    _check.dtype_in("W_dec", W_dec, (values.dtype,))
    _check.vector_beside("b_dec", b_dec, ("d_out", W_dec.shape[1]), W_dec)
    _check.same_device("values", values, indices=indices, W_dec=W_dec, b_dec=b_dec)


def _check_csr(values: Tensor, indices: Tensor, offsets: Tensor, W_dec: Tensor, b_dec: Tensor | None) -> None:
    _check_decoder(values, indices, W_dec, b_dec)
    _check.tensor("offsets", offsets)
    _check.offsets_of(offsets)
    _check.same_device("values", values, offsets=offsets)
    if values.dim() != 1:
        raise ValueError(f"values: got shape {list(values.shape)}, need [nnz]")


def _decode_csr(
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
    _check_csr(values, indices, offsets, W_dec, b_dec)
    kernels = registry.select("decode", values.device.type, values.dtype, backend)
    entries = _check.entries(kernels, indices, offsets, W_dec.shape[0])
    return kernels.decode(values, entries, offsets, W_dec, b_dec, values_dtype(W_dec.dtype, wide))


def _decode_csr_fake(
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
    _check_csr(values, indices, offsets, W_dec, b_dec)
    return W_dec.new_empty(offsets.shape[0] - 1, W_dec.shape[1], dtype=values_dtype(W_dec.dtype, wide))


def _decode(
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor | None = None,
    *,
    sparse_grad: bool = False,
    wide: bool = False,
    backend: str | None = None,
) -> Tensor:
    _check_entries(values, indices)
    k = values.shape[-1]
    rows = math.prod(values.shape[:-1])
    offsets = uniform_offsets(rows, k, values.device)
    flat = (values.reshape(-1), indices.reshape(-1), offsets)
    out = _ops.decode_csr(*flat, W_dec, b_dec, sparse_grad=sparse_grad, wide=wide, backend=backend)
    return out.view(*values.shape[:-1], W_dec.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    save_tensors(ctx, inputs, keyword_only_inputs, output)
    ctx.sparse_grad = keyword_only_inputs["sparse_grad"]


def _decode_csr_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, offsets, W_dec, *bias = ctx.saved_tensors
    needs = padded(ctx.needs_input_grad, 5, False)
    grad = grad.to(W_dec.dtype)
    d_values = _ops.gather_dot(grad, W_dec, indices, offsets, backend=ctx.backend) if needs[0] else None
    d_W = None
    if needs[3]:
        d_W = weight_gradient(values, indices, offsets, grad, W_dec.shape[0], ctx.sparse_grad, ctx.backend)
    d_b = None
    if needs[4]:
        d_b = grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(bias[0].dtype)
    return d_values, None, None, d_W, d_b


define(
    "decode_csr",
    "(Tensor values, Tensor indices, Tensor offsets, Tensor W_dec, Tensor? b_dec=None, *, "
    "bool sparse_grad=False, bool wide=False, str? backend=None) -> Tensor",
    _decode_csr,
    _decode_csr_fake,
    matrices=("values", "W_dec"),
)
differentiable("decode_csr", _decode_csr_backward, _setup_context)
# Implicit: gradients, shapes and autocast are those of decode_csr.
LIBRARY.define(
    "decode(Tensor values, Tensor indices, Tensor W_dec, Tensor? b_dec=None, *, bool sparse_grad=False, "
    "bool wide=False, str? backend=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.impl("decode", _decode, "CompositeImplicitAutograd")
