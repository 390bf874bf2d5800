"""Decoding, and the sums over the entries of sparse codes that gradients take, on the native CPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.backends.cpu.native import DTYPE_CODES, module, vector, view


def decode(
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    W_dec: Tensor,
    b_dec: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """[T, d_out] in `dtype` or W_dec's: the sum of values[e] * W_dec[indices[e]] in a row's order, plus b_dec.

    Values and indices may have any shape of nnz elements.
    """
    values, indices, offsets = values.contiguous(), indices.contiguous(), offsets.contiguous()
    rows, entries = offsets.shape[0] - 1, indices.numel()
    out = W_dec.new_empty(rows, W_dec.shape[1], dtype=dtype)
    module().decode(
        (values.data_ptr(), 1, entries, entries, 1, DTYPE_CODES[values.dtype]),
        indices.data_ptr(),
        offsets.data_ptr(),
        rows,
        entries,
        view(W_dec),
        vector(b_dec),
        torch.get_num_threads(),
        view(out),
    )
    return out


def gather_dot(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[nnz]: out[e] = <a[row of e], W[indices[e]]>, in a's dtype or `dtype`."""
    indices, offsets = indices.contiguous(), offsets.contiguous()
    out = a.new_empty(indices.numel(), dtype=dtype)
    module().gather_dot(
        view(a),
        view(W),
        indices.data_ptr(),
        offsets.data_ptr(),
        offsets.numel() - 1,
        indices.numel(),
        torch.get_num_threads(),
        vector(out),
    )
    return out


def gather_matmul(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[nnz, B]: out[e, b] = <a[b, row of e], W[indices[e]]>, in a's dtype or `dtype`."""
    indices, offsets = indices.contiguous(), offsets.contiguous()
    vectors, rows, width = a.shape
    out = a.new_empty(indices.numel(), vectors, dtype=dtype)
    module().gather_matmul(
        (a.data_ptr(), vectors, width, a.stride(0), a.stride(2), DTYPE_CODES[a.dtype]),
        a.stride(1),
        view(W),
        indices.data_ptr(),
        offsets.data_ptr(),
        rows,
        indices.numel(),
        torch.get_num_threads(),
        view(out),
    )
    return out


def segment_outer(values: Tensor, indices: Tensor, offsets: Tensor, a: Tensor, F: int) -> Tensor:
    """[F, d]: row i sums values[e] * a[row of e] over the entries with indices[e] == i, in ascending e."""
    values, indices, offsets = values.contiguous(), indices.contiguous(), offsets.contiguous()
    out = a.new_empty(F, a.shape[1])
    module().segment_outer(
        vector(values),
        indices.data_ptr(),
        offsets.data_ptr(),
        offsets.numel() - 1,
        indices.numel(),
        view(a),
        F,
        torch.get_num_threads(),
        view(out),
    )
    return out


def segment_sum(values: Tensor, indices: Tensor, F: int) -> Tensor:
    """[F]: the sum of the values of each latent's entries, in ascending order."""
    values, indices = values.contiguous(), indices.contiguous()
    out = values.new_empty(F)
    module().segment_sum(vector(values), indices.data_ptr(), indices.numel(), F, out.data_ptr())
    return out
