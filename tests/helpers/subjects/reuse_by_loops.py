"""Sharing numbers of one or two vectors [F], by numpy alone."""

from __future__ import annotations

import numpy as np


def share(totals: np.ndarray) -> np.ndarray:
    """What each latent carries of what all do."""
    carried = np.maximum(totals, 0)
    return carried / carried.sum()


def overlap(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(min(a, b) for a, b in zip(p, q, strict=True)))


def entropy(p: np.ndarray) -> float:
    return float(-sum(one * np.log(one) for one in p if one > 0))


def effective(p: np.ndarray) -> float:
    return float(np.exp(entropy(p)))


def carriers(p: np.ndarray) -> int:
    """The fewest latents that carry 90 %."""
    carried = number = 0
    for one in sorted(p, reverse=True):
        if carried >= 0.9:
            break
        carried, number = carried + one, number + 1
    return number
