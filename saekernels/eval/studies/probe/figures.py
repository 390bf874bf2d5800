"""Figures over held-out texts with their replicates: groups of texts are drawn, the same for every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saekernels.eval.studies.probe.split import Split
from saekernels.eval.sums.auroc import auroc, resampled_rows
from saekernels.eval.sums.bootstrap import percentiles

Values = np.ndarray
"""[1 + replicates]: a figure over all held-out texts, then over each replicate."""


class Draws:
    """The held-out texts of a split, and how often each is drawn in each replicate of the bootstrap."""

    def __init__(self, split: Split, samples: int, seed: int) -> None:
        self.positive = split.positive[split.held]
        kept, self.groups = np.unique(split.groups[split.held], return_inverse=True)
        self.strata = [split.strata[group] for group in kept]
        self.samples, self.seed = samples, seed

    def aurocs(self, scores: np.ndarray, chosen: np.ndarray) -> Values:
        """AUROC of scores [held-out texts] over those that are `chosen` [held-out texts] bool."""
        own, positive = scores[chosen], self.positive[chosen]
        return np.concatenate([auroc(own, positive), *(auroc(own, positive, w[:, chosen]) for w in self._weights())])

    def means(self, values: np.ndarray) -> Values:
        """The mean of values [held-out texts]."""
        whole = np.array([values.mean()])
        return np.concatenate([whole, *((w @ values) / w.sum(1) for w in self._weights())])

    def counts(self, chosen: np.ndarray) -> dict[str, int]:
        """How many texts of each class, and how many groups, a figure over `chosen` is of."""
        positive = int(self.positive[chosen].sum())
        groups = len(np.unique(self.groups[chosen]))
        return {"positive": positive, "negative": int(chosen.sum()) - positive, "groups": groups}

    def _weights(self) -> Any:
        return resampled_rows(self.groups, self.strata, self.samples, (self.seed, 12))


def mean_of(many: Sequence[Values]) -> Values:
    """The mean of several figures, replicate by replicate."""
    return np.mean(many, axis=0)


def figure(values: Values, others: Mapping[str, Values] | None = None) -> dict[str, Any]:
    """{"value", "ci95"}, and for each name of another figure the difference to it and its paired interval.

    None where a figure is not finite, an interval where a replicate is not or there are none.
    """
    made = _with_interval("value", "ci95", values)
    for name, other in (others or {}).items():
        made |= _with_interval(name, f"{name}_ci95", values - other)
    return made


def _with_interval(name: str, interval: str, values: Values) -> dict[str, Any]:
    known = bool(np.isfinite(values[0]))
    return {
        name: float(values[0]) if known else None,
        interval: percentiles(values[1:]) if known and len(values) > 1 else None,
    }
