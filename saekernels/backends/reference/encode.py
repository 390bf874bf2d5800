"""Sparse encoders: top-k and threshold selection over x @ W_enc.T + b_enc, a chunk of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.backends.reference.rows import accumulator, linear_rows, row_chunks


def _pre_activations(x: Tensor, W_enc: Tensor, b_enc: Tensor | None, pre_bias: Tensor | None) -> Tensor:
    wide = accumulator(x.dtype)
    centred = x.to(wide) if pre_bias is None else x.to(wide) - pre_bias.to(wide)
    return linear_rows(centred, W_enc, b_enc)


def _scaled(pre: Tensor, scale: Tensor | None) -> Tensor:
    return pre if scale is None else pre * scale.to(pre.dtype)


def _order(scores: Tensor, k: int) -> Tensor:
    """Indices [T, k] of the k largest scores: descending, ties by ascending index, NaN first."""
    # Adding zero makes -0.0 and +0.0 one key; a radix sort would tell them and the payloads of NaNs apart.
    keys = torch.where(scores.isnan(), torch.nan, scores + 0.0)
    return torch.sort(keys, dim=-1, descending=True, stable=True).indices[:, :k]


def topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `saekernels.topk`; scores [T, F]."""
    values = scores.new_empty(scores.shape[0], k)
    indices = torch.empty(scores.shape[0], k, dtype=torch.int32, device=scores.device)
    for rows in row_chunks(scores.shape[0], scores.shape[1]):
        chosen = _order(scores[rows], k)
        values[rows] = scores[rows].gather(1, chosen)
        indices[rows] = chosen.to(torch.int32)
    return values, indices


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
    """See `saekernels.encode_topk`; x [T, d]; it needs no preparation nor hint, and is always exact."""
    values = x.new_empty(x.shape[0], k, dtype=out or x.dtype)
    indices = torch.empty(x.shape[0], k, dtype=torch.int32, device=x.device)
    for rows in row_chunks(x.shape[0], W_enc.shape[0]):
        pre = _pre_activations(x[rows], W_enc, b_enc, pre_bias)
        compared = _scaled(pre, scale)
        chosen = _order(compared.abs() if activation == "abs" else compared, k)
        kept = pre.gather(1, chosen) + 0.0
        values[rows] = (kept.relu() if activation == "relu" else kept).to(values.dtype)
        indices[rows] = chosen.to(torch.int32)
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
    """See `saekernels.encode_threshold`; x [T, d], threshold [] or [F]; always exact."""
    dtype = out or x.dtype
    values, indices = [x.new_empty(0, dtype=dtype)], [torch.empty(0, dtype=torch.int32, device=x.device)]
    offsets = torch.zeros(x.shape[0] + 1, dtype=torch.int64, device=x.device)
    for rows in row_chunks(x.shape[0], W_enc.shape[0]):
        pre = _pre_activations(x[rows], W_enc, b_enc, pre_bias)
        compared = _scaled(pre, scale)
        kept = (compared > threshold.to(pre.dtype)) | compared.isnan()
        values.append(pre[kept].to(dtype))
        indices.append(kept.nonzero()[:, 1].to(torch.int32))
        offsets[1:][rows] = kept.sum(1)
    return torch.cat(values), torch.cat(indices), offsets.cumsum(0)
