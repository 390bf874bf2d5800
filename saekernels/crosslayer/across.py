"""TopK over the codes of all layers of a token together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from saekernels.errors import InputError
from saekernels.ops import topk
from saekernels.sae.codes import Codes


def keep_largest(codes: Sequence[Codes], k: int) -> list[Codes]:
    """Of the codes of layers, each with as many entries for every token, the k largest of a token; in CSR.

    What is 0 is dropped; of equal values those of earlier layers are kept. Raises InputError where layers have been
    read for other tokens than one another.
    """
    shapes = {one.shape for one in codes}
    if len(shapes) > 1:
        told = [list(shape) for shape in shapes]
        raise InputError(f"xs: got tokens {told}, need the same for all layers, over which the activation chooses")
    widths = [one.values.shape[-1] for one in codes]
    device = codes[0].values.device
    flat = torch.cat([one.values.reshape(-1, width).to(device) for one, width in zip(codes, widths, strict=True)], 1)
    found = topk(flat.detach(), min(k, flat.shape[1]))
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter(1, found.indices.long(), True) & (flat != 0)
    return [_kept(one, own) for one, own in zip(codes, chosen.split(widths, 1), strict=True)]


def _kept(codes: Codes, chosen: Tensor) -> Codes:
    """Those entries alone; chosen [T, k] bool."""
    chosen = chosen.to(codes.values.device)
    values, indices = (one.reshape(chosen.shape)[chosen] for one in (codes.values, codes.indices))
    return dataclasses.replace(codes, values=values, indices=indices, offsets=pad(chosen.sum(1).cumsum(0), (1, 0)))
