"""Many gradients against gathered rows: the inner loop of attribution."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def gather_product(gradients: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """[m, B], of row e at position p and gradient b the product <rows[e], gradients[b, p]>.

    gradients: [B, P, d]. rows: [m, d] by position; those of position p are offsets[p] .. offsets[p+1]. offsets: [P+1]
    int64.
    """
    out = rows.new_empty(len(rows), len(gradients))
    for position, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
        if begin < end:
            torch.mm(rows[begin:end], gradients[:, position].T, out=out[begin:end])
    return out
