"""The running median of activations' norms: what tells an attention sink from the rest of a site's positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Bins of equal ratio, 2^(1/64), over all of float32: the median is known to 0.6 % of itself.
_PER_OCTAVE = 64
_LOWEST, _HIGHEST = -149, 129
_BINS = (_HIGHEST - _LOWEST) * _PER_OCTAVE


class RunningMedian:
    """The median of all positive finite norms that were added, in any order and any portions, to within 0.6 %.

    Attributes:
        counts: int64 [bins], how many norms fell into each bin.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.int64)

    def add(self, norms: Tensor) -> None:
        """norms [...]; zeros, infinities and NaN are left out."""
        found = norms.detach().reshape(-1).double().cpu()
        found = found[(found > 0) & found.isfinite()]
        bins = ((found.log2() - _LOWEST) * _PER_OCTAVE).floor().clamp(0, _BINS - 1).long()
        self.counts += torch.bincount(bins, minlength=_BINS)

    @property
    def value(self) -> float:
        """The middle of the median's bin; NaN for no norm."""
        total = int(self.counts.sum())
        if not total:
            return math.nan
        index = int(torch.searchsorted(self.counts.cumsum(0), (total + 1) // 2))
        return float(2.0 ** (_LOWEST + (index + 0.5) / _PER_OCTAVE))

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        return {"counts": self.counts}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; what was added before is forgotten."""
        self.counts = state["counts"]

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one has seen."""
        self.counts = self.counts + state["counts"]


def outlying(x: Tensor, median: float, ratio: float) -> Tensor:
    """[...] bool: positions of x [..., d] whose Euclidean norm exceeds ratio * median; nowhere for a median of NaN."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64) > ratio * median
