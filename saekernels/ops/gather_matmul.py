"""gather_matmul: many vectors at each row of the codes against the decoder's rows: the inner loop of attribution."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from saekernels.backends import registry
from saekernels.ops import _check
from saekernels.ops._library import OPS, Op, register, values_dtype
from saekernels.ops.encoder_gradient import weight_gradient


def gather_matmul(
    a: Tensor,
    W: Tensor,
    indices: Tensor,
    offsets: Tensor,
    *,
    sparse_grad: bool = False,
    wide: bool = False,
    backend: str | None = None,
) -> Tensor:
    """out[e, b] = <a[b, row of e], W[indices[e]]> in float32: what gradients at many outputs say of each active latent.

    The entries are in CSR, as those of `decode_csr`: row t owns entries offsets[t] .. offsets[t+1]. So a row's vectors
    are read once for all of its entries, and neither they nor rows of W are ever copied out for each entry.

    Args:
        a: [B, T, d], B vectors at each of T rows: float32, bfloat16, float16, or float64 (reference backend only).
            Of any strides.
        W: [F, d], latents are rows; the dtype of a, or a narrower one beside float32.
        indices: [nnz], int32 or int64, each in [0, F). Rows that are gathered already are W with 0, 1, 2, ...
        offsets: [T+1] int64, from 0 to nnz, never falling.
        sparse_grad: the gradient of W is a sparse COO tensor of the rows used, as in `encode_topk`.
        wide: the dot products come back as they were accumulated, in float32 (float64 for float64).
        backend: its name (see `saekernels info`), or None for the best one that serves the inputs.

    Returns:
        [nnz, B] in the dtype of a (unless `wide`); differentiable with respect to a and W, to any order. The gradients
        take memory for B * nnz entries.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name. The data of
            indices and offsets are checked on the CPU only, where that needs no synchronisation.
    """
    return _gather_matmul(a, W, indices, offsets, sparse_grad=sparse_grad, wide=wide, backend=backend)


@dataclass(slots=True)
class GatherMatmul(Op):
    """saekernels::gather_matmul."""

    MATRICES = ("a", "W")

    a: Tensor
    W: Tensor
    indices: Tensor
    offsets: Tensor
    _: KW_ONLY
    sparse_grad: bool = False
    wide: bool = False
    backend: str | None = None

    def check(self) -> None:
        a, W = self.a, self.W
        _check.dtype_in("a", a, _check.FLOATS)
        if a.dtype == torch.float32:
            _check.dtype_in("W", W, (torch.float32, torch.bfloat16, torch.float16))
        else:
            _check.dtype_of("W", W, "a", a)
        _check.matrix("W", W, "F", "d")
        _check.dtype_in("indices", self.indices, _check.INDEX_DTYPES)
        _check.offsets_of(self.offsets)
        _check.shape("indices", self.indices, [("nnz", self.indices.numel())])
        vectors = a.shape[0] if a.dim() == 3 else "B"
        _check.shape("a", a, [("B", vectors), ("T", self.offsets.shape[0] - 1), ("d", W.shape[1])])

    def compute(self) -> Tensor:
        a, W = self.a, self.W
        kernels = registry.select("gather_matmul", a.device.type, a.dtype, self.backend)
        indices = _check.entries(kernels, self.indices, self.offsets, W.shape[0])
        return kernels.gather_matmul(a, W, indices, self.offsets, values_dtype(a.dtype, self.wide))

    def empty(self) -> Tensor:
        shape = (self.indices.shape[0], self.a.shape[0])
        return self.a.new_empty(shape, dtype=values_dtype(self.a.dtype, self.wide))

    def save(self, ctx: Any, output: Tensor) -> None:
        ctx.sparse_grad, ctx.backend = self.sparse_grad, self.backend
        ctx.save_for_backward(self.a, self.W, self.indices, self.offsets)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        a, W, indices, offsets = ctx.saved_tensors
        needs, backend, d_a, d_W = ctx.needs_input_grad, ctx.backend, None, None
        # The B matrices one below the other are codes of B * T rows.
        values, csr = grads[0].t().reshape(-1), _repeated(indices, offsets, a.shape[0])
        if needs[0]:
            rows = OPS.decode_csr(values.to(W.dtype), *csr, W, wide=a.dtype != W.dtype, backend=backend)
            d_a = rows.view(a.shape)
        if needs[1]:
            rows = a.reshape(-1, a.shape[2])
            d_W = weight_gradient(values.to(a.dtype), *csr, rows, W.shape[0], ctx.sparse_grad, backend).to(W.dtype)
        return d_a, d_W, None, None


def _repeated(indices: Tensor, offsets: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """The indices and offsets of codes whose rows are so many times those given."""
    count = indices.shape[0]
    begins = torch.arange(times, device=offsets.device)[:, None] * count + offsets[:-1]
    return indices.repeat(times), torch.cat([begins.reshape(-1), offsets.new_full((1,), times * count)])


_gather_matmul = register("gather_matmul", GatherMatmul)
