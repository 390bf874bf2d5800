"""gather_dot, segment_outer and segment_sum: the maps that carry gradients of sparse codes.

With entries e = (row, latent, value) in CSR:

    decode:        out[t] = sum over the entries e of row t of values[e] * W[indices[e]]
    gather_dot:    out[e] = <a[row of e], W[indices[e]]>
    segment_outer: out[i] = sum over the entries e of latent i of values[e] * a[row of e]

The three are closed under differentiation, so gradients of any order stay sparse. Sums run in ascending e: no atomics.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import SymInt, Tensor

from saekernels.backends import registry
from saekernels.ops import _check
from saekernels.ops._library import OPS, Op, register, values_dtype


def uniform_offsets(rows: int, k: int, device: torch.device) -> Tensor:
    """CSR offsets of codes with k entries in every row: int64 [rows + 1]."""
    step = max(k, 1)
    offsets = torch.arange(0, (rows + 1) * step, step, dtype=torch.int64, device=device)
    return offsets if k else offsets.zero_()


@dataclass(slots=True)
class GatherDot(Op):
    """saekernels::gather_dot."""

    a: Tensor
    W: Tensor
    indices: Tensor
    offsets: Tensor
    _: KW_ONLY
    wide: bool = False
    backend: str | None = None

    def check(self) -> None:
        _check_entries(self.indices, self.offsets, self.a, W=self.W)
        if self.a.dtype == torch.float32:  # rows that were made more precise than the weights
            _check.dtype_in("W", self.W, (torch.float32, torch.bfloat16, torch.float16))
        _check.shape("W", self.W, [("F", self.W.shape[0]), ("d", self.a.shape[1])])

    def compute(self) -> Tensor:
        kernels = registry.select("gather_dot", self.a.device.type, self.a.dtype, self.backend)
        indices = _check.entries(kernels, self.indices, self.offsets, self.W.shape[0])
        return kernels.gather_dot(self.a, self.W, indices, self.offsets, values_dtype(self.a.dtype, self.wide))

    def empty(self) -> Tensor:
        return self.a.new_empty(self.indices.shape, dtype=values_dtype(self.a.dtype, self.wide))

    def save(self, ctx: Any, output: Tensor) -> None:
        ctx.backend = self.backend
        ctx.save_for_backward(self.a, self.W, self.indices, self.offsets)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        a, W, *csr = ctx.saved_tensors
        (grad,), needs, backend = grads, ctx.needs_input_grad, ctx.backend
        d_a = d_W = None
        if needs[0]:
            d_a = OPS.decode_csr(grad.to(W.dtype), *csr, W, wide=a.dtype != W.dtype, backend=backend)
        if needs[1]:
            d_W = OPS.segment_outer(grad.to(a.dtype), *csr, a, W.shape[0], backend=backend).to(W.dtype)
        return d_a, d_W, None, None


@dataclass(slots=True)
class SegmentOuter(Op):
    """saekernels::segment_outer."""

    values: Tensor
    indices: Tensor
    offsets: Tensor
    a: Tensor
    n_latents: int | SymInt
    _: KW_ONLY
    backend: str | None = None

    def check(self) -> None:
        _check_entries(self.indices, self.offsets, self.a, values=self.values)
        _check.shape("values", self.values, [("nnz", self.indices.shape[0])])

    def compute(self) -> Tensor:
        kernels = registry.select("segment_outer", self.a.device.type, self.a.dtype, self.backend)
        indices = _check.entries(kernels, self.indices, self.offsets, self.n_latents)
        return kernels.segment_outer(self.values, indices, self.offsets, self.a, self.n_latents)

    def empty(self) -> Tensor:
        return self.a.new_empty(self.n_latents, self.a.shape[1])

    def save(self, ctx: Any, output: Tensor) -> None:
        ctx.backend = self.backend
        ctx.save_for_backward(self.values, self.indices, self.offsets, self.a)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        values, *csr, a = ctx.saved_tensors
        (grad,), needs, backend = grads, ctx.needs_input_grad, ctx.backend
        d_values = OPS.gather_dot(a, grad, *csr, backend=backend) if needs[0] else None
        d_a = OPS.decode_csr(values, *csr, grad, backend=backend) if needs[3] else None
        return d_values, None, None, d_a, None


@dataclass(slots=True)
class SegmentSum(Op):
    """saekernels::segment_sum."""

    values: Tensor
    indices: Tensor
    n_latents: int | SymInt
    _: KW_ONLY
    backend: str | None = None

    def check(self) -> None:
        _check.shape("values", self.values, [("nnz", self.indices.shape[0])])

    def compute(self) -> Tensor:
        kernels = registry.select("segment_sum", self.values.device.type, self.values.dtype, self.backend)
        indices = _check.entries(kernels, self.indices, None, self.n_latents)
        return kernels.segment_sum(self.values, indices, self.n_latents)

    def empty(self) -> Tensor:
        return self.values.new_empty(self.n_latents)

    def save(self, ctx: Any, output: Tensor) -> None:
        ctx.save_for_backward(self.indices)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        return grads[0][indices.long()], None, None


def _check_entries(indices: Tensor, offsets: Tensor, a: Tensor, **partners: Tensor) -> None:
    _check.dtype_in("indices", indices, _check.INDEX_DTYPES)
    _check.offsets_of(offsets)
    _check.dtype_in("a", a, _check.FLOATS)
    _check.shape("indices", indices, [("nnz", indices.numel())])
    _check.shape("a", a, [("T", offsets.shape[0] - 1), ("d", a.shape[-1])])
    for name, value in partners.items():
        if name != "W" or a.dtype != torch.float32:
            _check.dtype_of(name, value, "a", a)


register("gather_dot", GatherDot)
register("segment_outer", SegmentOuter)
register("segment_sum", SegmentSum)
