"""gather_dot, segment_outer and segment_sum: the maps that carry gradients of sparse codes.

With entries e = (row, latent, value) in CSR:

    decode:        out[t] = sum over the entries e of row t of values[e] * W[indices[e]]
    gather_dot:    out[e] = <a[row of e], W[indices[e]]>
    segment_outer: out[i] = sum over the entries e of latent i of values[e] * a[row of e]

The three are closed under differentiation, so gradients of any order stay sparse. Sums run in ascending e: no atomics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekernels.backends import registry
from saekernels.ops import _check
from saekernels.ops._library import define, differentiable

_ops = torch.ops.saekernels


def uniform_offsets(rows: int, k: int, device: torch.device) -> Tensor:
    """CSR offsets of codes with k entries in every row: int64 [rows + 1]."""
    step = max(k, 1)
    offsets = torch.arange(0, (rows + 1) * step, step, dtype=torch.int64, device=device)
    return offsets if k else offsets.zero_()


def save_tensors(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    """The setup_context of the maps: every tensor input and the backend."""
    ctx.backend = keyword_only_inputs["backend"]
    ctx.save_for_backward(*[value for value in inputs if isinstance(value, Tensor)])


def _check_entries(indices: Tensor, offsets: Tensor, a: Tensor, **partners: Tensor) -> None:
    _check.dtype_in("indices", indices, _check.INDEX_DTYPES)
    _check.offsets_of(offsets)
    _check.dtype_in("a", a, _check.FLOATS)
    _check.shape("indices", indices, [("nnz", indices.numel())])
    _check.shape("a", a, [("T", offsets.shape[0] - 1), ("d", a.shape[-1])])
    for name, value in partners.items():
        _check.dtype_in(name, value, (a.dtype,))
    _check.same_device("a", a, indices=indices, offsets=offsets, **partners)


def _check_gather(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor) -> None:
    _check_entries(indices, offsets, a, W=W)
    _check.shape("W", W, [("F", W.shape[0]), ("d", a.shape[1])])


def _check_segment(values: Tensor, indices: Tensor, offsets: Tensor, a: Tensor) -> None:
    _check_entries(indices, offsets, a, values=values)
    _check.shape("values", values, [("nnz", indices.shape[0])])


def _gather_dot(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor, *, backend: str | None = None) -> Tensor:
    _check_gather(a, W, indices, offsets)
    kernels = registry.select("gather_dot", a.device.type, a.dtype, backend)
    return kernels.gather_dot(a, W, _check.entries(kernels, indices, offsets, W.shape[0]), offsets)


def _gather_dot_fake(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor, *, backend: str | None = None) -> Tensor:
    _check_gather(a, W, indices, offsets)
    return a.new_empty(indices.shape)


def _segment_outer(
    values: Tensor, indices: Tensor, offsets: Tensor, a: Tensor, n_latents: int, *, backend: str | None = None
) -> Tensor:
    _check_segment(values, indices, offsets, a)
    kernels = registry.select("segment_outer", a.device.type, a.dtype, backend)
    return kernels.segment_outer(values, _check.entries(kernels, indices, offsets, n_latents), offsets, a, n_latents)


def _segment_outer_fake(
    values: Tensor, indices: Tensor, offsets: Tensor, a: Tensor, n_latents: int, *, backend: str | None = None
) -> Tensor:
    _check_segment(values, indices, offsets, a)
    return a.new_empty(n_latents, a.shape[1])


def _segment_sum(values: Tensor, indices: Tensor, n_latents: int, *, backend: str | None = None) -> Tensor:
    _check.shape("values", values, [("nnz", indices.shape[0])])
    kernels = registry.select("segment_sum", values.device.type, values.dtype, backend)
    return kernels.segment_sum(values, _check.entries(kernels, indices, None, n_latents), n_latents)


def _segment_sum_fake(values: Tensor, indices: Tensor, n_latents: int, *, backend: str | None = None) -> Tensor:
    return values.new_empty(n_latents)


def _gather_dot_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, W, indices, offsets = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_a = _ops.decode_csr(grad, indices, offsets, W, backend=ctx.backend) if needs[0] else None
    d_W = _ops.segment_outer(grad, indices, offsets, a, W.shape[0], backend=ctx.backend) if needs[1] else None
    return d_a, d_W, None, None


def _segment_outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, offsets, a = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_values = _ops.gather_dot(a, grad, indices, offsets, backend=ctx.backend) if needs[0] else None
    d_a = _ops.decode_csr(values, indices, offsets, grad, backend=ctx.backend) if needs[3] else None
    return d_values, None, None, d_a, None


def _segment_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    _, indices = ctx.saved_tensors
    return grad[indices.long()], None, None


define(
    "gather_dot",
    "(Tensor a, Tensor W, Tensor indices, Tensor offsets, *, str? backend=None) -> Tensor",
    _gather_dot,
    _gather_dot_fake,
)
define(
    "segment_outer",
    "(Tensor values, Tensor indices, Tensor offsets, Tensor a, SymInt n_latents, *, str? backend=None) -> Tensor",
    _segment_outer,
    _segment_outer_fake,
)
define(
    "segment_sum",
    "(Tensor values, Tensor indices, SymInt n_latents, *, str? backend=None) -> Tensor",
    _segment_sum,
    _segment_sum_fake,
)
differentiable("gather_dot", _gather_dot_backward, save_tensors)
differentiable("segment_outer", _segment_outer_backward, save_tensors)
differentiable("segment_sum", _segment_sum_backward, save_tensors)
