"""Makes the runs of a plan on a batch: each begins where an earlier one left off, losses are taken some at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.passes.constant_ablation import ConstantRun, find_constant, only_prefix_special
from saekernels.eval.passes.head_kinds import Head, Together
from saekernels.eval.passes.layer_reuse import CLEAN, check_reuse, find_reuse, no_reuse
from saekernels.eval.passes.left import SiteNorms
from saekernels.eval.passes.plan import Plan, Run, first_of_each_site, site_of
from saekernels.eval.passes.random_errors import RandomErrors
from saekernels.eval.sums.accumulate import DocumentSums, KlHistogram, SiteStats
from saekernels.eval.text.batches import Batch
from saekernels.ops import LinearCeKl
from saekernels.sae.module import SAE
from saekernels.sae.probes import AffineProbe
from saekernels.splice.context import splice
from saekernels.splice.leave import Leave

Observer = Callable[..., None]


@dataclass
class Means:
    """What the baselines put in: site -> mean [d_out], (site, rank) -> probe."""

    means: Mapping[str, Tensor]
    probes: Mapping[tuple[str, int], AffineProbe] = field(default_factory=dict)


@dataclass
class Sums:
    """What the runs of all batches add up to, next to the figures per document."""

    stats: dict[str, dict[str, SiteStats]]
    histograms: dict[str, KlHistogram]
    not_finite: Tensor

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        stats = {name: {entry: one.state() for entry, one in group.items()} for name, group in self.stats.items()}
        counts = {name: one.counts for name, one in self.histograms.items()}
        return {"stats": stats, "histograms": counts, "not_finite": self.not_finite}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of the same runs; what was added up before is forgotten."""
        for name, group in self.stats.items():
            for entry, one in group.items():
                one.load(state["stats"][name][entry])
        for name, histogram in self.histograms.items():
            histogram.counts = state["histograms"][name]
        self.not_finite = state["not_finite"]

    def merge(self, state: dict[str, Any]) -> None:
        """Add what the runs of other batches add up to."""
        for name, group in self.stats.items():
            for entry, one in group.items():
                one.merge(state["stats"][name][entry])
        for name, histogram in self.histograms.items():
            histogram.counts = histogram.counts + state["histograms"][name]
        self.not_finite = self.not_finite + state["not_finite"]


class Runner:
    """Makes the forward passes of one evaluation. The model is in eval mode; gradients are off.

    rule: which positions every run leaves as they are.
    """

    def __init__(
        self, model: Any, head: Head, saes: Mapping[str, Any], device: torch.device, seed: int, rule: Leave
    ) -> None:
        self.model, self.head, self.saes, self.device = model, head, dict(saes), device
        self.left = SiteNorms(model, head, first_of_each_site(saes), rule)
        self._masks: dict[str, Tensor] | None = None
        self.reuse = no_reuse("not asked for")
        self.errors = RandomErrors(seed)
        self.constant: dict[str, ConstantRun] = {}
        self.prefix = 0

    def prepare(self, plan: Plan, ids: Tensor, reuse_layers: bool) -> None:
        """Find out on a few tokens, ids [B, S], where the runs of the plan can begin."""
        self.plan = plan
        if not reuse_layers:
            return
        runs = [run for run in plan.runs if run.kind == "sae"]

        def spliced(run: Run, entries: tuple[str, ...]) -> Tensor:
            with self._splice(run, entries, None, None, None):
                return self.head.body(ids)

        inner = {target.runs["sae"] for target in plan.cumulative[1:-1]}
        earlier = {site_of(entry): tuple(getattr(sae, "before", ())) for entry, sae in self.saes.items()}
        found = find_reuse(self.model, plan.runs, plan.joint, inner, earlier)
        self.reuse = check_reuse(found, runs, lambda: self.head.body(ids), spliced)

    def find_constant(self, means: Means, prefix: list[int], context: int, tokens: Tensor) -> None:
        """Find the ablations whose results do not depend on the text; they are then not run again."""
        self.prefix = len(prefix)
        if self.left.rule.norm is not None or self.left.rule.first > len(prefix):
            return  # what is left brings the text in
        for run in self.plan.runs:
            if run.kind in ("zero", "mean"):

                def body(ids: Tensor, run: Run = run) -> Tensor:
                    touched = torch.ones_like(ids, dtype=torch.bool)
                    touched[:, : len(prefix)] = False
                    with self._splice(run, run.entries, means, ~touched, None):
                        return self.head.body(ids.to(self.device))

                found = find_constant(body, self.head, prefix, context, tokens)
                if found is not None:
                    self.constant[run.name] = found

    def passes(self) -> int:
        """Forward passes over a batch of ordinary text, the clean one included."""
        return 1 + len(self.plan.runs) - len(self.constant)

    def run(self, batch: Batch, means: Means, documents: DocumentSums, sums: Sums, advance: Callable[[], None]) -> None:
        """All runs on one batch, their figures added to `documents` and `sums`; advance() after each pass."""
        rows = torch.zeros(len(batch.rows), len(self.plan.columns), dtype=torch.float64)
        column = {key: index for index, key in enumerate(self.plan.columns)}
        waiting: list[tuple[Run, Tensor]] = []

        def take(run: Run, found: LinearCeKl) -> None:
            named = {("clean", "ce"): found.ce_p, (run.name, "ce"): found.ce_q}
            _fill(rows, column, {**named, (run.name, "kl"): found.kl, (run.name, "agree"): found.top1_agree})
            if run.name in sums.histograms:
                sums.histograms[run.name].add(found.kl.cpu())

        with self.reuse.recording(CLEAN):
            clean, masks = self.left.run_clean(batch)
        self._masks = masks and {site: ~mask for site, mask in masks.items()}
        advance()
        together = Together(self.head, clean, batch.targets, take)
        plain = only_prefix_special(batch, self.prefix)
        for run in self.plan.runs:
            if plain and run.name in self.constant:
                rows[:, column[run.name, "ce"]] = self.constant[run.name].cross_entropy(self.head, batch)
                continue
            hidden = self._hidden(run, batch, means, sums)
            advance()
            if run.compared:
                together.add(run, hidden)
            else:
                waiting.append((run, hidden))
                if len(waiting) == 2:
                    _fill(rows, column, self._pair(waiting, batch))
                    waiting = []
        together.flush()
        if waiting:
            _fill(rows, column, self._pair(waiting, batch))
        sums.not_finite = sums.not_finite + (~torch.isfinite(rows)).sum(0)
        documents.add(batch.documents, batch.context, batch.targets, batch.nbytes, rows)
        self.reuse.forget()
        self.errors.forget()

    def _pair(self, runs: list[tuple[Run, Tensor]], batch: Batch) -> dict[tuple[str, str], Tensor]:
        """The losses of one or two runs by one call, whose KL of one from the other is not used."""
        found = self.head.compare(runs[0][1], runs[-1][1], batch.targets)
        return {(run.name, "ce"): one for (run, _), one in zip(runs, found, strict=False)}

    def _hidden(self, run: Run, batch: Batch, means: Means, sums: Sums) -> Tensor:
        stats = sums.stats.get(run.name, {})
        entry_of = dict(zip(run.sites, run.entries, strict=True))

        def observe(site: str, x: Tensor, x_hat: Tensor, y: Tensor, codes: Any, touched: Tensor) -> None:
            if entry_of[site] in stats:
                stats[entry_of[site]].add(x_hat, y, codes, touched)
            self.errors.note(run.name, site, x_hat, y)

        watch = observe if run.kind == "sae" else None
        recorded = any(start.source == run.name for start in self.reuse.starts.values())
        with (
            self.reuse.resuming(run),
            self.reuse.recording(run.name) if recorded else contextlib.nullcontext(),
            self._splice(run, self.reuse.entries(run), means, self._masks or ~batch.touched, watch, batch),
        ):
            return self.head.hidden(batch.ids.to(self.device), batch.rows)

    def _splice(
        self,
        run: Run,
        entries: tuple[str, ...],
        means: Means | None,
        untouched: Tensor | dict[str, Tensor] | None,
        observer: Observer | None,
        batch: Batch | None = None,
    ) -> contextlib.AbstractContextManager[Any]:
        """The splice of these entries of a run."""
        if not entries:
            return contextlib.nullcontext()
        sites: dict[str, Any] = {site_of(entry): self.saes[entry] for entry in entries}
        mode: Any = run.kind
        if run.kind == "random":
            source = " ".join(["sae", *run.entries])
            assert batch is not None
            sites = {site: (lambda x, y, site=site: self.errors.replace(source, site, batch, y)) for site in sites}
            mode = "function"
        elif run.kind == "pca":
            assert means is not None
            ranks = dict(zip(run.sites, run.ranks, strict=True))
            sites = {site: means.probes[site, ranks[site]] for site in sites}
            mode = "sae"
        mean = means.means if means is not None and run.kind == "mean" else None
        return splice(self.model, sites, replace=mode, means=mean, untouched=untouched, observer=observer)


def empty_sums(plan: Plan, saes: Mapping[str, SAE], means: Mapping[str, Tensor]) -> Sums:
    """Zeros for every target of the plan."""
    stats = {
        target.runs["sae"].name: {
            entry: SiteStats(getattr(saes[entry], "n_latents", 0), means[site_of(entry)]) for entry in target.entries
        }
        for target in plan.targets
    }
    histograms = {target.runs["sae"].name: KlHistogram() for target in plan.targets}
    return Sums(stats, histograms, torch.zeros(len(plan.columns), dtype=torch.int64))


def _fill(rows: Tensor, column: Mapping[tuple[str, str], int], found: Mapping[tuple[str, str], Tensor]) -> None:
    for key, figures in found.items():
        rows[:, column[key]] = figures.detach().to("cpu", torch.float64)
