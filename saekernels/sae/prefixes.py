"""Matryoshka's reconstructions: from the first latents, and from more and more of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from saekernels.ops import CsrCodes, decode_csr


def decode_prefixes(codes: CsrCodes, W_dec: Tensor, widths: Sequence[int]) -> Tensor:
    """[T, levels, d_out]: level i is what the first `widths[i]` latents decode to, without a bias.

    Each entry is decoded once, in the level where it enters: indices ascend within a row, so that the entries of a row
    and a level lie together.

    Args:
        codes: values [nnz], indices [nnz] int32 ascending within a row and below the last width, offsets [T+1].
        W_dec: [F, d_out].
        widths: ascending, the last one F or the first latent that no entry has.
    """
    values, indices, offsets = codes
    tokens, count = len(offsets) - 1, len(widths)
    if count > 1:
        bounds = torch.tensor(widths, device=indices.device, dtype=indices.dtype)
        level = torch.bucketize(indices, bounds, right=True)
        rows = torch.arange(tokens, device=indices.device).repeat_interleave(offsets.diff())
        offsets = pad(torch.bincount(rows * count + level, minlength=tokens * count).cumsum(0), (1, 0))
    decoded = decode_csr(values, indices, offsets, W_dec).view(tokens, count, W_dec.shape[1])
    return decoded.cumsum(1) if count > 1 else decoded
