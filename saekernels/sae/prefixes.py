"""Matryoshka's reconstructions: from the first latents, and from more and more of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from saekernels.ops import CsrCodes, _check, decode_csr


def decode_prefixes(codes: CsrCodes, W_dec: Tensor, widths: Sequence[int]) -> Tensor:
    """[T, levels, d_out]: level i is what the first `widths[i]` latents decode to, without a bias.

    Each entry is decoded once, in the level where it enters: indices ascend within a row, so that the entries of a row
    and a level lie together.

    Args:
        codes: values [nnz], indices [nnz] int32 ascending within a row and below the last width, offsets [T+1].
        W_dec: [F, d_out].
        widths: ascending, from 1 to F, the last one above every index.

    Raises:
        ValueError: widths or indices that are not so; of indices where they lie on the CPU.
    """
    values, indices, offsets = codes
    _check_prefixes(codes, W_dec, widths)
    tokens, count = len(offsets) - 1, len(widths)
    if count > 1:
        bounds = torch.tensor(widths, device=indices.device, dtype=indices.dtype)
        level = torch.bucketize(indices, bounds, right=True)
        rows = torch.arange(tokens, device=indices.device).repeat_interleave(offsets.diff())
        offsets = pad(torch.bincount(rows * count + level, minlength=tokens * count).cumsum(0), (1, 0))
    decoded = decode_csr(values, indices, offsets, W_dec).view(tokens, count, W_dec.shape[1])
    return decoded.cumsum(1) if count > 1 else decoded


def _check_prefixes(codes: CsrCodes, W_dec: Tensor, widths: Sequence[int]) -> None:
    latents, listed = W_dec.shape[0], list(widths)
    whole = bool(listed) and None not in map(_check.integer, listed)
    if not whole or listed != sorted({*listed}) or not 1 <= listed[0] <= listed[-1] <= latents:
        raise ValueError(f"widths: got {listed}, need whole numbers that ascend from 1 to {latents}, the rows of W_dec")
    indices, offsets = codes.indices, codes.offsets
    if indices.device.type != "cpu" or not indices.numel():
        return
    if int(indices.max()) >= listed[-1]:
        raise ValueError(f"codes: got latent {int(indices.max())}, need all below {listed[-1]}, the last width")
    falls = indices[1:] <= indices[:-1]
    falls[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(indices))] - 1] = False
    if bool(falls.any()):
        raise ValueError("codes: their latents must ascend within each row")
