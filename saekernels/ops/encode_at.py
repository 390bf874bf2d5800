"""encode_at: pre-activations of chosen latents alone, of any codes, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.ops import _check
from saekernels.ops.sparse_maps import uniform_offsets


def encode_at(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    indices: Tensor,
    offsets: Tensor | None = None,
    *,
    pre_bias: Tensor | None = None,
    wide: bool = False,
    backend: str | None = None,
) -> Tensor:
    """(x - pre_bias) @ W_enc.T + b_enc at the given latents of each row, and nowhere else.

    At the indices that `encode_topk` with activation "none" gives, its values; on the CPU bit for bit in float32.

    Args:
        x: [..., d], float32, bfloat16, float16, or float64 (reference backend only); [T, d] with offsets.
        W_enc: [F, d], latents are rows; x's dtype.
        b_enc: [F], x's dtype or float32, or None.
        indices: [..., k], int32 or int64, each in [0, F), in any order and repeated at will; [nnz] with offsets.
        offsets: None for k latents in every row, or [T + 1] int64: row t has indices[offsets[t] .. offsets[t + 1]].
        pre_bias: [d], subtracted from x in float32; x's dtype or float32.
        wide: values come back as they were accumulated, in float32 (float64 for float64).
        backend: its name (see `saekernels info`), or None for the best one that serves the inputs.

    Returns:
        Values of the shape of indices, in x's dtype (unless `wide`); differentiable to any order with respect to x,
        W_enc, b_enc and pre_bias.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name. Indices and
            offsets are checked on the CPU only, where that needs no synchronisation.
    """
    for name, value in {"x": x, "W_enc": W_enc, "indices": indices}.items():
        _check.tensor(name, value)
    _check.tensors(x=x, W_enc=W_enc, b_enc=b_enc, pre_bias=pre_bias)
    _check.in_one_place(x=x, W_enc=W_enc, b_enc=b_enc, pre_bias=pre_bias, indices=indices, offsets=offsets)
    _check.scalars(backend, wide=(wide, bool))
    _check.encoder(x, W_enc, b_enc, pre_bias, "exact")
    _check.dtype_in("indices", indices, _check.INDEX_DTYPES)
    if offsets is None:
        if indices.dim() != x.dim() or indices.shape[:-1] != x.shape[:-1]:
            need = ", ".join(map(str, [*x.shape[:-1], "k"]))
            raise ValueError(f"indices: got shape {list(indices.shape)}, need [..., k] = [{need}], the rows of x")
        rows = x.reshape(-1, x.shape[-1])
        offsets = uniform_offsets(rows.shape[0], indices.shape[-1], x.device)
    else:
        rows = x
        _check.offsets_of(offsets)
        _check.shape("x", x, [("T", offsets.shape[0] - 1), ("d", W_enc.shape[1])])
        _check.shape("indices", indices, [("nnz", indices.numel())])
    if pre_bias is not None:
        accumulated = torch.promote_types(x.dtype, torch.float32)
        rows = rows.to(accumulated) - pre_bias.to(accumulated)
    flat = indices.reshape(-1)
    values = torch.ops.saekernels.gather_dot(rows, W_enc, flat, offsets, wide=True, backend=backend)
    if b_enc is not None:
        values = values + b_enc.to(values.dtype)[flat.long()]
    return (values if wide else values.to(x.dtype)).reshape(indices.shape)
