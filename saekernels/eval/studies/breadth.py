"""What probes and SAEs cost inside the distribution that a probe was fitted on, and outside, as it grows.

On a narrow enough slice any rank-r probe reconstructs well: over one token a layer's output has nearly rank 1. What
matters is what it does elsewhere. Probes are fitted on half of the documents and measured on the other half.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.eval.passes.calls import trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Progress
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.text.batches import Batch, batches
from saekernels.eval.text.documents import Document
from saekernels.eval.text.slices import LEVELS, Slices, alternate, levels_of
from saekernels.eval.text.windows import Tokens, Window, chosen
from saekernels.parallel.devices import input_device
from saekernels.sae.module import SAE
from saekernels.sae.probes import AffineProbe, Moments, fit_probes
from saekernels.splice.context import splice

Key = tuple[str, str, str]
"""(where a probe was fitted, "rank R" or "sae", "inside", "outside" or a domain)."""


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
        text = _Text(documents, tokens, slices, wanted, seed)
        runner = _Runner(model, head, site, sae, text, batch_size, device)
        advance = _Advance(progress, sum(len(w.ids) for w in text.windows) * 2)
        found, by_domain = runner.fit(advance)
        levels = {level: found[LEVELS.index(level)] for level in slices.levels}
        for level, moments in levels.items():
            if not moments.count:
                raise InputError(f"breadth: the slice {level!r} has no position in the half that probes are fitted on")
        jobs = _jobs(levels, by_domain, ranks, site, sae)
        advance.total = sum(len(w.ids) for w in text.windows if not text.fitting(w)) * (len(jobs) + 2) * 2
        sums = runner.measure(jobs, advance)
    figures = {key: _figure(rows, bootstrap, seed) for key, rows in sums.items()}
    positions = {level: moments.count for level, moments in levels.items()}
    widest = min(sae.d_in, sae.d_out)
    kept = sorted({min(rank, widest) for rank in ranks})
    return Breadth(site, slices, kept, positions, sorted(by_domain), figures)


class _Advance:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, positions: int) -> None:
        self.done += positions
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


class _Text:
    """Windows with the slice of each position; even documents are fitted on, odd ones measured."""

    def __init__(
        self, documents: Iterable[Document], tokens: Tokens, slices: Slices, wanted: int | None, seed: int
    ) -> None:
        self.windows: list[Window] = []
        self.domains: list[str] = []
        self.levels: dict[tuple[int, int], np.ndarray] = {}
        for document, windows in chosen(documents, tokens, wanted, seed):
            self.domains.append(document.domain)
            for window, level in zip(windows, levels_of(document, windows, slices, tokens), strict=True):
                self.windows.append(window)
                self.levels[window.document, window.start] = level
        self.half = alternate(self.domains)

    def fitting(self, window: Window) -> bool:
        return self.half[window.document]

    def level(self, batch: Batch) -> Tensor:
        """[B, S] int8: the slice of each position; padding is outside of all."""
        made = torch.full(batch.ids.shape, 127, dtype=torch.int8)
        for row, window in enumerate(batch.windows):
            made[row, : len(window.ids)] = torch.from_numpy(self.levels[window.document, window.start])
        return made


@dataclass(frozen=True)
class _Job:
    """One splice: what stands at the site, fitted where, spliced and measured at which positions."""

    fitted: str
    method: str
    replacement: Any
    where: str
    level: int = 3

    def mask(self, levels: Tensor, touched: Tensor) -> Tensor:
        if self.where == "inside":
            return touched & (levels <= self.level)
        if self.where == "outside":
            return touched & (levels > self.level)
        return touched


def _jobs(
    levels: Mapping[str, Moments], by_domain: Mapping[str, Moments], ranks: Sequence[int], site: str, sae: SAE
) -> list[_Job]:
    def probes(moments: Moments) -> dict[int, AffineProbe]:
        widest = min(sae.d_in, sae.d_out)
        fitted = fit_probes(moments, sorted({min(rank, widest) for rank in ranks}))
        return {rank: probe.to(sae.W_dec.device) for rank, probe in fitted.items()}

    jobs = []
    for level, moments in levels.items():
        number = LEVELS.index(level)
        methods: dict[str, Any] = {f"rank {rank}": probe for rank, probe in probes(moments).items()}
        for method, replacement in {**methods, "sae": sae}.items():
            sides = ("inside", "outside") if number < 3 else ("inside",)
            jobs += [_Job(level, method, replacement, side, number) for side in sides]
    everything = levels["everything"]
    widest = f"rank {max(probes(everything))}"
    for domain, moments in {**by_domain, "everything": everything}.items():
        if moments.count:
            jobs.append(_Job(domain, widest, list(probes(moments).values())[-1], "domains"))
    return [*jobs, _Job("everything", "sae", sae, "domains")]


class _Runner:
    def __init__(
        self, model: Any, head: Head, site: str, sae: SAE, text: _Text, batch_size: int, device: torch.device
    ) -> None:
        self.model, self.head, self.site, self.sae, self.text = model, head, site, sae, text
        self.batch_size, self.device = batch_size, device

    def batches(self, fitting: bool) -> Iterator[Batch]:
        own = [window for window in self.text.windows if self.text.fitting(window) is fitting]
        context = max((len(window.ids) for window in own), default=2)
        return batches(own, self.batch_size, context)

    def fit(self, advance: _Advance) -> tuple[list[Moments], dict[str, Moments]]:
        """Moments of each slice, and of each domain, over the first half."""
        paired = self.sae.d_out if self.site.endswith("@module") else None
        shells = [Moments(self.sae.d_in, paired) for _ in LEVELS]
        domains = {name: Moments(self.sae.d_in, paired) for name in sorted(set(self.text.domains))}
        for batch in self.batches(True):
            level = torch.where(batch.touched, self.text.level(batch), 127)
            owner = [self.text.domains[window.document] for window in batch.windows]

            def observe(
                site: str, x: Tensor, x_hat: Tensor, y: Tensor, *_: Any, level: Any = level, owner: Any = owner
            ) -> None:
                shape = (*level.shape, -1)
                x, y = x.reshape(shape), y.reshape(shape)
                for number, moments in enumerate(shells):
                    own = level == number
                    moments.add(x[own], y[own] if paired else None)
                for row, name in enumerate(owner):
                    own = level[row] < 127
                    domains[name].add(x[row][own], y[row][own] if paired else None)

            nothing = torch.ones_like(batch.touched)
            with splice(self.model, {self.site: self.sae}, replace="zero", untouched=nothing, observer=observe):
                self.head.body(batch.ids.to(self.device))
            advance(batch.positions)
        nested = [shells[0]]
        for shell in shells[1:]:
            nested.append(nested[-1] + shell)
        return nested, domains

    def measure(self, jobs: Sequence[_Job], advance: _Advance) -> dict[Key, np.ndarray]:
        """Per key, [documents, 3]: predictions, clean CE and spliced CE, over the second half."""
        count = len(self.text.domains)
        sums: dict[Key, np.ndarray] = {}
        for batch in self.batches(False):
            level = self.text.level(batch)
            clean = self.head.hidden(batch.ids.to(self.device), batch.rows)
            advance(batch.positions)
            for job in jobs:
                mask = job.mask(level, batch.touched)
                predicted = mask.reshape(-1)[batch.rows]
                advance(batch.positions)
                if not bool(predicted.any()):
                    continue
                with self._splice(job.replacement, ~mask):
                    hidden = self.head.hidden(batch.ids.to(self.device), batch.rows[predicted])
                at = predicted.to(clean.device)
                found = self.head.compare(clean[at], hidden, batch.targets[predicted])
                rows = torch.stack([torch.ones_like(found[0]), found[0], found[1]], 1).double().cpu().numpy()
                owners = batch.documents[predicted].numpy()
                for key, own in self._keys(job, owners):
                    np.add.at(sums.setdefault(key, np.zeros((count, 3))), owners[own], rows[own])
        return sums

    def _keys(self, job: _Job, owners: np.ndarray) -> Iterator[tuple[Key, np.ndarray]]:
        if job.where != "domains":
            yield (job.fitted, job.method, job.where), np.ones(len(owners), dtype=bool)
            return
        domains = np.asarray(self.text.domains)[owners]
        for domain in np.unique(domains):
            yield (job.fitted, job.method, str(domain)), domains == domain

    def _splice(self, replacement: Any, untouched: Tensor) -> contextlib.AbstractContextManager[Any]:
        return splice(self.model, {self.site: replacement}, untouched=untouched)


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
