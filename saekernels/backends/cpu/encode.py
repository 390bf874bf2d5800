"""Encoders on the native CPU kernels, and the selection of the k best."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.backends.cpu.native import DTYPE_CODES, View, bytes_of, module, screening, vector, view

_ACTIVATION_CODES = {"none": 0, "relu": 1, "abs": 2}

LOOKS = 8  # at a sample of W_enc, that are each a fingerprint of its own


def prepare(W_enc: Tensor, pre_bias: Tensor | None = None, precision: str = "exact") -> Tensor:
    """Norms, rounding errors and, for a bf16 screen, a packed copy of W_enc [F, d]: [nbytes] uint8.

    The same for any pre_bias and precision.
    """
    block = torch.empty(module().prepared_bytes(*W_enc.shape), dtype=torch.uint8, device="cpu")
    module().prepare(view(W_enc), torch.get_num_threads(), block.data_ptr())
    return block


def variant(W_enc: Tensor, pre_bias: Tensor | None, precision: str) -> tuple[object, ...]:
    """What weights are prepared for, beside themselves: nothing."""
    return ()


def fingerprint(W_enc: Tensor, look: int) -> tuple[int, View, str]:
    """A hash of every eighth, from the `look`-th on, of 4,096 elements spread evenly over W_enc; and where it lies.

    Of all elements if they are no more than 4,096. And the screen that it is prepared for.
    """
    where = view(W_enc)
    return module().fingerprint(where, 4096, look, LOOKS), where, screening()


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    pre_bias: Tensor | None,
    k: int,
    activation: str,
    prepared: Tensor | None = None,
    *,
    hint: Tensor | None = None,
    precision: str = "exact",
    out: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Values [T, k] in `out` or x.dtype, indices [T, k] int32, best first; exact at any precision, without a hint."""
    values = x.new_empty(x.shape[0], k, dtype=out)
    indices = x.new_empty(x.shape[0], k, dtype=torch.int32)
    module().encode_topk(
        view(x),
        view(W_enc),
        vector(b_enc),
        vector(pre_bias),
        vector(scale),
        bytes_of(prepared),
        k,
        _ACTIVATION_CODES[activation],
        torch.get_num_threads(),
        DTYPE_CODES[values.dtype],
        values.data_ptr(),
        indices.data_ptr(),
    )
    return values, indices


def encode_threshold(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    pre_bias: Tensor | None,
    threshold: Tensor,
    prepared: Tensor | None = None,
    *,
    precision: str = "exact",
    out: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """CSR codes of the latents above their threshold: values [nnz], indices [nnz] int32, offsets [T + 1] int64.

    Values are in `out` or x.dtype. Exact at any precision.
    """
    codes = module().encode_threshold(
        view(x),
        view(W_enc),
        vector(b_enc),
        vector(pre_bias),
        vector(scale),
        bytes_of(prepared),
        vector(threshold),
        torch.get_num_threads(),
    )
    values = x.new_empty(codes.nnz, dtype=out)
    indices = x.new_empty(codes.nnz, dtype=torch.int32)
    offsets = x.new_empty(x.shape[0] + 1, dtype=torch.int64)
    codes.move_to(DTYPE_CODES[values.dtype], values.data_ptr(), indices.data_ptr(), offsets.data_ptr())
    return values, indices, offsets


def topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best elements of each row of scores [T, F], best first, and their indices int32."""
    values = scores.new_empty(scores.shape[0], k)
    indices = scores.new_empty(scores.shape[0], k, dtype=torch.int32)
    module().topk(view(scores), k, torch.get_num_threads(), values.data_ptr(), indices.data_ptr())
    return values, indices
