"""What probes and SAEs cost inside the distribution that a probe was fitted on, and outside, as it grows.

On a narrow enough slice any rank-r probe reconstructs well: over one token a layer's output has nearly rank 1. What
matters is what it does elsewhere. Probes are fitted on half of the documents and measured on the other half.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from saekernels.errors import InputError
from saekernels.eval.passes.calls import trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Advance, Progress
from saekernels.eval.studies.breadth_runs import Key, Runner, Text, jobs_of
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.text.documents import Document
from saekernels.eval.text.slices import LEVELS, Slices
from saekernels.eval.text.windows import Tokens
from saekernels.parallel.devices import input_device
from saekernels.sae.module import SAE


@dataclass
class Breadth:
    """What `measure_breadth` found; see `to_dict` for what it holds."""

    site: str
    slices: Slices
    ranks: list[int]
    positions: dict[str, int]
    domains: list[str]
    figures: dict[Key, dict[str, Any]]

    def to_dict(self, names: Mapping[str, str]) -> dict[str, Any]:
        """JSON-ready: "levels" from narrow to broad, each with the ΔCE of every probe and of the SAE inside and outside
        and the extrapolation gap (outside minus inside), the positions fitted on, and the predictions and documents
        measured inside; and "transfer", domain fitted on x domain measured on."""
        methods = [*(f"rank {rank}" for rank in self.ranks), "sae"]
        levels = []
        for level in self.slices.levels:
            found = {}
            for method in methods:
                inside, outside = (self.figures.get((level, method, side)) for side in ("inside", "outside"))
                gap = None
                if inside and outside and None not in (inside["delta_ce"], outside["delta_ce"]):
                    gap = outside["delta_ce"] - inside["delta_ce"]
                found[method] = {"inside": inside, "outside": outside, "extrapolation_gap": gap}
            own = self.figures.get((level, "sae", "inside"), {})
            row = {"level": level, "name": names[level], "fitted_on": self.positions.get(level, 0)}
            row |= {"measured_on": own.get("tokens", 0), "measured_documents": own.get("documents", 0)}
            levels.append({**row, "methods": found})
        rank = f"rank {self.ranks[-1]}"
        sources = [*(d for d in self.domains if (d, rank, d) in self.figures), "everything"]
        transfer = {
            "method": rank,
            "fitted_on": sources,
            "measured_on": self.domains,
            "delta_ce": [[self._delta(source, rank, d) for d in self.domains] for source in sources],
            "sae": [self._delta("everything", "sae", d) for d in self.domains],
        }
        return {"site": self.site, "ranks": self.ranks, "levels": levels, "transfer": transfer}

    def _delta(self, source: str, method: str, where: str) -> float | None:
        found = self.figures.get((source, method, where))
        return None if found is None else found["delta_ce"]


def measure_breadth(
    model: Any,
    tokens: Tokens,
    site: str,
    sae: SAE,
    documents: Iterable[Document],
    slices: Slices,
    *,
    ranks: Sequence[int],
    wanted: int | None = None,
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Breadth:
    """Fit probes of each rank on each slice and on each domain, and measure them and the SAE.

    *Inside*: spliced at the positions of the slice alone, ΔCE over the predictions made there; *outside*: both on the
    rest. Between domains: spliced everywhere, ΔCE over each domain.

    Documents are read as `evaluate` reads them.

    Raises InputError where a slice has no position to fit on or to measure.
    """
    head = find_head(model)
    device = input_device(model)
    with torch.inference_mode():
        ids = trial_ids(model, head.vocabulary, tokens.context)
        check_head(model, head, ids)
        try_sites(model, head.body, {site: sae}, ids, batch_size)
        text = Text(documents, tokens, slices, wanted, seed)
        runner = Runner(model, head, site, sae, text, batch_size, device)
        advance = Advance(progress, sum(len(w.ids) for w in text.windows) * 2)
        found, by_domain = runner.fit(advance)
        levels = {level: found[LEVELS.index(level)] for level in slices.levels}
        for level, moments in levels.items():
            if not moments.count:
                raise InputError(f"breadth: the slice {level!r} has no position in the half that probes are fitted on")
        jobs = jobs_of(levels, by_domain, ranks, sae)
        advance.total = sum(len(w.ids) for w in text.windows if not text.fitting(w)) * (len(jobs) + 2) * 2
        sums = runner.measure(jobs, advance)
    figures = {key: _figure(rows, bootstrap, seed) for key, rows in sums.items()}
    positions = {level: moments.count for level, moments in levels.items()}
    widest = min(sae.d_in, sae.d_out)
    kept = sorted({min(rank, widest) for rank in ranks})
    return Breadth(site, slices, kept, positions, sorted(by_domain), figures)


def _figure(rows: np.ndarray, samples: int, seed: int) -> dict[str, Any]:
    """ΔCE in nats per token, its interval over documents, and of how many predictions and documents it is."""
    own = rows[rows[:, 0] > 0]
    total = own.sum(0)
    delta = float((total[2] - total[1]) / total[0])
    interval = None
    if samples and len(own) > 1:
        drawn = resample_totals(own, samples, (seed, 5))
        interval = percentiles((drawn[:, 2] - drawn[:, 1]) / drawn[:, 0])
    known = np.isfinite(delta)
    size = {"tokens": int(total[0]), "documents": len(own)}
    return {"delta_ce": delta if known else None, "ci95": interval if known else None, **size}
