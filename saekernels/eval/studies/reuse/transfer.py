"""Losses under restricted dictionaries and single removals, by domain: what lists chosen in one are worth in others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.eval.studies.reuse.lists import WHOLE, Run
from saekernels.eval.studies.reuse.sharing import as_json
from saekernels.eval.studies.reuse.text import Layout
from saekernels.eval.sums.jackknife import estimate, leave_one_out
from saekernels.eval.text.batches import Batch


class Losses:
    """Sums of cross-entropy over the second half, [runs, G, D] fp64, of every run and of the model as it is."""

    def __init__(self, layout: Layout, runs: Sequence[Run]) -> None:
        self.layout = layout
        self.places = {run: number for number, run in enumerate(runs)}
        shape = (layout.groups, len(layout.domains))
        self.counts = torch.zeros(shape, dtype=torch.float64)
        self.clean = torch.zeros(shape, dtype=torch.float64)
        self.sums = torch.zeros(len(runs), *shape, dtype=torch.float64)

    def add(self, batch: Batch, clean: Tensor, spliced: Mapping[Run, Tensor]) -> None:
        """clean, and by run the spliced cross-entropies [n] of the batch's predictions."""
        at = self.layout.group[batch.documents] * len(self.layout.domains) + self.layout.domain[batch.documents]
        self.counts.view(-1).index_add_(0, at, torch.ones(len(at), dtype=torch.float64))
        self.clean.view(-1).index_add_(0, at, clean.double().cpu())
        for run, losses in spliced.items():
            self.sums[self.places[run]].view(-1).index_add_(0, at, losses.double().cpu())

    def clean_ce(self) -> Tensor:
        """[D]: mean cross-entropy of the model as it is, in nats."""
        return self.clean.sum(0) / self.counts.sum(0)

    def delta(self) -> Tensor:
        """[1 + G, runs, D]: ΔCE in nats per token, over all groups and then without each."""
        raised = leave_one_out((self.sums - self.clean).transpose(0, 1))
        counts = leave_one_out(self.counts)
        return torch.stack([one / number for one, number in zip(raised, counts, strict=True)])

    def raised(self, runs: Sequence[Run]) -> Tensor:
        """[len(runs), G]: by how many nats in all each of them raises the loss over that of the whole dictionary."""
        at = [self.places[run] for run in runs]
        return (self.sums[at] - self.sums[self.places[WHOLE]]).sum(2)


def removal_figures(losses: Losses, sample: Sequence[int], estimated: Tensor, first_order: Tensor) -> dict[str, Any]:
    """True removals beside what is estimated of them on the same text; JSON-ready.

    estimated, first_order [len(sample), G]: nats over the second half, of these latents. error: sum of |estimate -
    true| over the sum of |true|; bias: sum of the estimates over that of the true ones; correlation: Pearson's.
    """
    true = losses.raised([Run("removed", "", latent) for latent in sample])
    counts = leave_one_out(losses.counts.sum(1))
    removed = leave_one_out(true.T)
    ways = {"effect": leave_one_out(estimated.T), "first_order": leave_one_out(first_order.T)}

    def figure(way: str, of: Callable[[Tensor, Tensor], Any]) -> dict[str, Any]:
        return as_json(estimate([float(of(*pair)) for pair in zip(ways[way], removed, strict=True)]))

    def rise(number: int) -> dict[str, Any]:
        return as_json(estimate([float(t[number] / n) for t, n in zip(removed, counts, strict=True)]))

    found: dict[str, Any] = {
        way: {
            "error": figure(way, lambda e, t: (e - t).abs().sum() / t.abs().sum()),
            "bias": figure(way, lambda e, t: e.sum() / t.sum()),
            "correlation": figure(way, _correlation),
        }
        for way in ways
    }
    found["latents"] = [
        {"latent": latent, **{way: float(many[0][number] / counts[0]) for way, many in ways.items()},
         "removed": rise(number)}
        for number, latent in enumerate(sample)
    ]  # fmt: skip
    return found


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm())) if len(a) > 1 else float("nan")


def transfer_figures(losses: Losses, sizes: Sequence[int], held: Mapping[Run, Tensor]) -> dict[str, Any]:
    """The curve over m and the matrices of restricted dictionaries with paired intervals, in nats; JSON-ready.

    Means over domains weigh each the same. home: a domain's own list; away: the mean over the other domains' lists.
    """
    delta = losses.delta().numpy()
    domains = losses.layout.domains
    missing = np.full_like(delta[:, 0], np.nan)

    def row(kind: str, domain: str = "", size: int = 0) -> np.ndarray:
        """[1 + G, D]"""
        at = losses.places.get(Run(kind, domain, size))
        return missing if at is None else delta[:, at]

    def table(kind: str, size: int = 0) -> np.ndarray:
        """[1 + G, D, D]: of lists or directions chosen in A, measured in B."""
        return np.stack([row(kind, domain, size) for domain in domains], axis=1)

    def figures(values: np.ndarray) -> Any:
        if values.ndim == 1:
            return as_json(estimate(values.tolist()))
        return [figures(values[:, number]) for number in range(values.shape[1])]

    none = row("none").mean(1)
    curve = []
    for size in sizes:
        own, random = table("own", size), table("random", size)
        home, away, lucky = _home(own), _away(own), _home(random)
        worth = np.where(none > home, none - home, np.nan)
        curve.append({
            "latents": size,
            "held": {domain: len(held.get(Run("own", domain, size), ())) for domain in domains},
            "union_held": len(held.get(Run("union", "", size), ())),
            "home": figures(home), "away": figures(away), "gap": figures(away - home),
            "transfer": figures((none - away) / worth),
            "random": figures(lucky), "over_random": figures(lucky - home),
            "random_share": figures((none - lucky) / worth), "union": figures(row("union", "", size).mean(1)),
            "matrix": figures(own), "random_matrix": figures(random),
        })  # fmt: skip
    directions = table("pca")
    return {
        "whole": {"mean": figures(row("whole").mean(1)), "domains": figures(row("whole"))},
        "none": {"mean": figures(none), "domains": figures(row("none"))},
        "pca": {"home": figures(_home(directions)), "away": figures(_away(directions)),
                "gap": figures(_away(directions) - _home(directions)), "matrix": figures(directions)},
        "curve": curve,
    }  # fmt: skip


def _home(table: np.ndarray) -> np.ndarray:
    """[1 + G]: the mean of the diagonal of [1 + G, D, D]."""
    return np.diagonal(table, axis1=1, axis2=2).mean(1)


def _away(table: np.ndarray) -> np.ndarray:
    """[1 + G]: the mean of everything else."""
    count = table.shape[1]
    return (table.sum((1, 2)) - _home(table) * count) / (count * (count - 1))
