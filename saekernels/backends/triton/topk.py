"""topk of scores that already exist: CUDA's radix select where it is built, else keys through torch, a few rows at a
time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from saekernels.backends import cuda
from saekernels.backends.triton.select import unpack

BUFFER_BYTES = 32 * 2**20


def topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row of scores [T, F], best first, and their indices int32; see `saekernels.topk`."""
    if scores.device.type == "cuda" and cuda.available() is None:
        return cuda.topk(scores, k)
    values = torch.empty(scores.shape[0], k, dtype=scores.dtype, device=scores.device)
    indices = torch.empty(scores.shape[0], k, dtype=torch.int32, device=scores.device)
    low = 0x7FFFFFFF - torch.arange(scores.shape[1], device=scores.device)
    for part in chunks(scores.shape[0], 3 * scores.shape[1]):
        wide = scores[part].float()
        bits = wide.view(torch.int32)
        order = torch.where(wide == 0, 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))
        order = torch.where(wide.isnan(), 0x7FFFFFFF, order)
        best = ((order.long() << 32) | (low << 1)).topk(k, dim=1).values  # keys are unique: no ties
        _, indices[part] = unpack(best, scores.dtype, relu=False)
        values[part] = scores[part].gather(1, indices[part].long())
    return values, indices


def chunks(rows: int, latents: int) -> Iterator[slice]:
    """Slices of rows whose scores fit into the buffer; one row at least."""
    step = max(1, BUFFER_BYTES // (4 * latents))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
