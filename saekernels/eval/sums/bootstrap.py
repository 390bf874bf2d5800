"""Confidence intervals by resampling documents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LEVEL = 0.95
MOST_REPLICATES = 1_000_000
_DRAWS_AT_ONCE = 4_000_000


def resample_totals(sums: np.ndarray, samples: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Totals of `samples` bootstrap replicates.

    sums [documents, columns] fp64 holds per-document sums. Each replicate draws as many documents as there are, with
    replacement, and adds up their rows: all columns see the same draw, so differences between columns are paired.
    Returns [samples, columns].
    """
    documents, columns = sums.shape
    totals = np.empty((samples, columns))
    done = 0
    for counts in resample_counts(documents, samples, seed):
        with np.errstate(invalid="ignore"):
            totals[done : done + len(counts)] = counts @ sums
        done += len(counts)
    return totals


def resample_counts(documents: int, samples: int, seed: int | tuple[int, ...]) -> Iterator[np.ndarray]:
    """How often each document is drawn in each of `samples` replicates, some replicates at a time.

    Yields [some, documents] fp64; every row sums to `documents`.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, _DRAWS_AT_ONCE // max(1, documents))
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        draws = rng.integers(0, documents, size=(size, documents))
        draws += np.arange(size)[:, None] * documents
        counts = np.bincount(draws.ravel(), minlength=size * documents).reshape(size, documents)
        yield counts.astype(np.float64)


def percentiles(values: np.ndarray) -> tuple[float, float] | None:
    """The central 95 % of `values`, or None if one of them is not finite."""
    if not np.isfinite(values).all():
        return None
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
