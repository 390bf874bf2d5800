"""The k best of the k best of every shard: exactly the k best of all, ties by the lower latent.

Scores and latents travel as one integer of 64 bits whose order is that of the codes (the layout of csrc/common/keys.h):
bits 63..32 the score as an int32 in the order of floats, NaN above +inf and -0.0 equal to +0.0; bits 31..1 0x7fffffff
minus the latent; bit 0 whether the value is the score's negative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekernels.parallel.collectives import gathered

_TOP = 0x7FFFFFFF


def pack(values: Tensor, latents: Tensor, magnitude: bool) -> Tensor:
    """Keys of float32 values and int32 latents; ordered by magnitude where asked for."""
    score = values.abs() if magnitude else values
    bits = score.contiguous().view(torch.int32)
    order = torch.where(score.isnan(), _TOP, torch.where(score == 0, 0, bits ^ ((bits >> 31) & _TOP)))
    negative = (values < 0).long() if magnitude else 0
    return (order.long() << 32) | ((_TOP - latents.long()) << 1) | negative


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """float32 values and int32 latents."""
    order = (keys >> 32).int()
    score = torch.where(order == _TOP, torch.nan, (order ^ ((order >> 31) & _TOP)).view(torch.float32))
    return torch.where((keys & 1) != 0, -score, score), (_TOP - ((keys & 0xFFFFFFFF) >> 1)).int()


def merge_topk(values: Tensor, latents: Tensor, k: int, magnitude: bool, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The k best of all ranks' codes.

    values [T, j] float32 or float64, latents [T, j] int32 of the whole dictionary: this rank's best, j the same in all.
    Returns the best values [T, k] and latents [T, k], best first, and bool [T, j]: which of this rank's are among them.
    """
    if values.dtype == torch.float64:
        return _merge_wide(values, latents, k, magnitude, group)
    own = pack(values, latents, magnitude)
    keys = torch.cat(list(gathered(own, group)), dim=1)
    best = keys.topk(k, dim=1).values  # keys are unique, so there are no ties
    return *unpack(best), own >= best[:, -1:]


def _merge_wide(values: Tensor, latents: Tensor, k: int, magnitude: bool, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """float64 has no room in a key: two stable sorts."""
    every = torch.cat(list(gathered(values, group)), dim=1)
    names = torch.cat(list(gathered(latents, group)), dim=1)
    score = every.abs() if magnitude else every
    # By latent first: what fills up a smaller shard's offer stands among other shards' latents, and ties with them.
    by_latent = names.argsort(dim=1, stable=True)
    every, names, score = (one.gather(1, by_latent) for one in (every, names, score))
    order = torch.where(score.isnan(), torch.nan, score + 0.0).sort(dim=1, descending=True, stable=True).indices[:, :k]
    chosen = names.gather(1, order)
    mine = (latents[:, :, None] == chosen[:, None]).any(-1)
    return every.gather(1, order) + 0.0, chosen, mine
