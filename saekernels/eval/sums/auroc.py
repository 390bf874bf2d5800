"""AUROC of scores, ties counting half, and its replicates over groups of rows that are drawn together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from saekernels.eval.sums.bootstrap import resample_counts


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The share of pairs (a positive row, a negative one) in which the positive one has the higher score.

    scores [n]; positive [n] bool; weights [replicates, n] of the rows, each 1 for None. Returns [replicates] fp64; NaN
    where one class has no weight, and everywhere for a score that is NaN.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    if not len(scores) or np.isnan(scores).any():
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    drawn = weights[:, order]
    above = np.add.reduceat(drawn * positive[order], starts, axis=1)
    below = np.add.reduceat(drawn * ~positive[order], starts, axis=1)
    won = (above * (below.cumsum(1) - below / 2)).sum(1)
    with np.errstate(invalid="ignore"):
        return won / (above.sum(1) * below.sum(1))


def resampled_rows(
    groups: np.ndarray, strata: Sequence[object], samples: int, seed: int | tuple[int, ...]
) -> Iterator[np.ndarray]:
    """How often each row is drawn where groups are drawn with replacement, within each stratum as many as it has.

    groups [n] int: the group of each row; strata [groups]: the stratum of each group, so that no replicate lacks a
    class that groups have apart. Yields [some, n] fp64 until there are `samples` rows.
    """
    kinds = list(dict.fromkeys(strata))
    seed = seed if isinstance(seed, tuple) else (seed,)
    members = [np.array([i for i, one in enumerate(strata) if one == kind]) for kind in kinds]
    # As many replicates at a time as keep [some, n] small.
    step = max(1, 4_000_000 // max(1, len(groups)))
    for start in range(0, samples, step):
        size = min(step, samples - start)
        counts = np.zeros((size, len(strata)))
        for number, own in enumerate(members):
            drawn = list(resample_counts(len(own), size, (*seed, start, number)))
            counts[:, own] = np.concatenate(drawn)
        yield counts[:, groups]
