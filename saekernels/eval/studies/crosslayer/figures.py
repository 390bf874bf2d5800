"""From sums per document to the figures of each run, with intervals that all see the same resampled documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saekernels.display.numbers import Interval
from saekernels.eval.studies.crosslayer.names import domain_of
from saekernels.eval.studies.crosslayer.totals import columns_of
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.sums.figures import finite

Estimate = dict[str, Any]
"""{"value": number or None, "ci95": [low, high] or None}."""


class Losses:
    """Sums of one cell of the records over some documents: of everything, of a domain or of another stratum.

    Args:
        sums: [documents, 2 + columns]: predictions, bytes, then `columns_of` the runs.
        samples, seed: of the bootstrap over documents.
    """

    def __init__(self, sums: np.ndarray, names: Sequence[str], samples: int, seed: tuple[int, ...]) -> None:
        self.rows = sums[sums[:, 0] > 0]
        self.names = list(names)
        self._at = {key: 2 + number for number, key in enumerate(columns_of(names))}
        self._total = self.rows.sum(0)
        enough = samples > 0 and len(self.rows) > 1
        self._drawn = resample_totals(self.rows, samples, seed) if enough else None

    @property
    def tokens(self) -> int:
        """Predictions."""
        return int(self._total[0])

    @property
    def unsure(self) -> int:
        """Predictions in Anthropic's subset."""
        return int(self._total[self._at["clean", "unsure"]])

    def ce(self, run: str) -> float | None:
        """Mean cross-entropy in nats."""
        return finite(float(self._total[self._at[run, "ce"]] / self._total[0])) if self.tokens else None

    def difference(self, a: str, b: str) -> Estimate:
        """The cross-entropy of run a minus that of b, nats per token."""
        first, second = (self._at[run, "ce"] for run in (a, b))
        return self._estimate(lambda t: (t[:, first] - t[:, second]) / t[:, 0])

    def share(self, run: str, figure: str, unsure: bool = False) -> Estimate:
        """The mean of a figure of a run over all predictions, or over Anthropic's subset."""
        column, over = self._at[run, figure], self._at["clean", "unsure"] if unsure else 0
        return self._estimate(lambda t: t[:, column] / t[:, over])

    def figures(self, run: str) -> dict[str, Any]:
        """Of a run: CE, ΔCE, KL, agreement of the first choices everywhere and in Anthropic's subset."""
        return {
            "ce": self.ce(run),
            "delta_ce": self.difference(run, "clean"),
            "kl": self.share(run, "kl"),
            "top1": self.share(run, "agree"),
            "top1_unsure": self.share(run, "agree_unsure", unsure=True),
        }

    def _estimate(self, figure: Any) -> Estimate:
        if not self.tokens:
            return {"value": None, "ci95": None}
        with np.errstate(divide="ignore", invalid="ignore"):
            value = finite(float(figure(self._total[None])[0]))
            interval: Interval | None = None
            if value is not None and self._drawn is not None:
                interval = percentiles(figure(self._drawn))
        return {"value": value, "ci95": interval}


def strata_figures(
    records: np.ndarray,
    domains: Sequence[str],
    slices: Mapping[str, Mapping[str, int]],
    names: Sequence[str],
    samples: int,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Axis -> of each stratum its predictions, clean CE and the ΔCE and top-1 of every run.

    records: [documents, cells, 2 + columns]. Domains are shares of the documents, other strata cells of the records.
    """
    own = np.array(domains)
    parts = [("domain", name, records[own == name, 0]) for name in sorted(set(domains))]
    parts += [(axis, name, records[:, cell]) for axis, cells in slices.items() for name, cell in cells.items()]
    made: dict[str, list[dict[str, Any]]] = {}
    for number, (axis, name, sums) in enumerate(parts):
        found = Losses(sums, names, samples, (seed, 21, number))
        if found.tokens:
            runs = {
                run: {"delta_ce": found.difference(run, "clean"), "top1": found.share(run, "agree")} for run in names
            }
            row = {"name": name, "documents": len(found.rows), "tokens": found.tokens, "ce": found.ce("clean")}
            made.setdefault(axis, []).append({**row, "runs": runs})
    return made


def extrapolation(
    records: np.ndarray, domains: Sequence[str], names: Sequence[str], samples: int, seed: int
) -> list[dict[str, Any]]:
    """Of every run that is fitted or selected on one domain: its ΔCE there and elsewhere, and that of its like.

    Its like, `whole_inside` and `whole_outside`, is fitted on everything, or has all latents; `price`: what having seen
    one domain alone costs elsewhere, paired by document.
    """
    where, rows = np.array(domains), []
    narrow = [(name, *domain_of(name)) for name in names]
    order = {one: number for number, one in enumerate(dict.fromkeys(domain for *_, domain in narrow if domain))}
    sides = {
        domain: [
            Losses(records[part, 0], names, samples, (seed, 22, 2 * number + side))
            for side, part in enumerate((where == domain, where != domain))
        ]
        for domain, number in order.items()
    }
    for name, run, domain in narrow:
        if domain is not None:
            inside, outside = sides[domain]
            figures = {"inside": inside.difference(name, "clean"), "outside": outside.difference(name, "clean")}
            like = {"whole_inside": inside.difference(run, "clean"), "whole_outside": outside.difference(run, "clean")}
            price = outside.difference(name, run)
            rows.append({"run": name, "like": run, "domain": domain, **figures, **like, "price": price})
    return rows


def transfer(
    records: np.ndarray, domains: Sequence[str], names: Sequence[str], samples: int, seed: int
) -> list[dict[str, Any]]:
    """Run -> ΔCE on each domain, fitted or selected on each domain in turn, and on everything."""
    where, measured = np.array(domains), []
    for number, name in enumerate(sorted(set(domains))):
        found = Losses(records[where == name, 0], names, samples, (seed, 21, number))
        if found.tokens:
            measured.append((name, found))
    made = []
    for run in dict.fromkeys(run for run, domain in map(domain_of, names) if domain is not None):
        sources = [domain for own, domain in map(domain_of, names) if own == run and domain is not None]
        rows = [run if source is None else f"{run}@{source}" for source in (*sources, None)]
        figures = [[found.difference(row, "clean") for _, found in measured] for row in rows]
        made.append({"run": run, "from": [*sources, None], "on": [name for name, _ in measured], "delta_ce": figures})
    return made
