"""From sums to figures: every reported number is a function of totals, so the bootstrap evaluates the same function."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from saekernels.display.numbers import Interval
from saekernels.eval.sums.bootstrap import percentiles, resample_totals

COLUMNS = ("clean", "spliced", "zero", "mean", "random", "pca", "kl", "agree")
"""Sums of one target: CE of the clean and the spliced run and of the baselines, KL and agreement; NaN where not run."""
FIGURES = (
    *COLUMNS, "delta_nats", "delta_bits_per_byte", "recovered_zero", "recovered_mean",
    "delta_zero", "delta_mean", "delta_random", "delta_pca", "over_random", "over_pca",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None where it is undefined or not finite."""

    value: float | None
    ci95: Interval | None


def figures(tokens: np.ndarray, nbytes: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Figures of FIGURES, [n, len(FIGURES)], from totals: tokens [n], bytes [n] and the columns [n, len(COLUMNS)].

    delta_X is the CE of X minus the clean one; over_X the spliced CE minus that of X. NaN where a figure is undefined:
    no bytes, a baseline that was not run, or an ablation that does not raise the loss.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        per_token = totals / tokens[:, None]
        clean, spliced, zero, mean, random, pca = per_token[:, :6].T
        delta = spliced - clean
        bits = (totals[:, 1] - totals[:, 0]) / (math.log(2) * nbytes)
        recovered = [
            np.where(ablated > clean, (ablated - spliced) / (ablated - clean), np.nan) for ablated in (zero, mean)
        ]
        deltas = [other - clean for other in (zero, mean, random, pca)]
        over = [spliced - other for other in (random, pca)]
    return np.column_stack([per_token, delta, bits, *recovered, *deltas, *over])


def estimates(
    tokens: np.ndarray, nbytes: np.ndarray, sums: list[np.ndarray], samples: int, seed: tuple[int, ...]
) -> list[dict[str, Estimate]]:
    """The figures of every target with paired intervals.

    tokens, nbytes [documents]; sums: per target [documents, len(COLUMNS)]. All see the same resampled documents.
    """
    table = np.column_stack([tokens, nbytes, *sums]).astype(np.float64)
    point = _per_target(table.sum(axis=0, keepdims=True), len(sums))
    if len(table) < 2 or samples < 1:
        return [{name: Estimate(finite(v), None) for name, v in zip(FIGURES, rows[0], strict=True)} for rows in point]
    spread = _per_target(resample_totals(table, samples, seed), len(sums))
    return [
        {
            name: Estimate(finite(value), percentiles(column) if finite(value) is not None else None)
            for name, value, column in zip(FIGURES, rows[0], replicates.T, strict=True)
        }
        for rows, replicates in zip(point, spread, strict=True)
    ]


def _per_target(totals: np.ndarray, targets: int) -> list[np.ndarray]:
    width = len(COLUMNS)
    starts = [2 + width * i for i in range(targets)]
    return [figures(totals[:, 0], totals[:, 1], totals[:, start : start + width]) for start in starts]


def finite(value: float) -> float | None:
    """The value as a float, or None (JSON's null) if it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None
