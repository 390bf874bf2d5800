"""From filled sums to the report's rows, with a note for every figure that has to be left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saekernels.display.numbers import counted
from saekernels.eval.passes.plan import ALL, BASELINES, Plan, Target
from saekernels.eval.passes.runner import Sums
from saekernels.eval.report.data import (
    BaselineFigures,
    CrossEntropy,
    CumulativeFigures,
    DeltaCE,
    Documents,
    DomainFigures,
    LossRecovered,
    SiteFigures,
    Worst,
)
from saekernels.eval.store.window_files import Spool
from saekernels.eval.sums.accumulate import mean_stats
from saekernels.eval.sums.figures import COLUMNS, Estimate, estimates, finite
from saekernels.eval.text.strata import Strata

FEW_DOCUMENTS = 20
_NAMES = {
    "spliced": "spliced loss",
    "zero": "zero-ablated loss",
    "mean": "mean-ablated loss",
    "random": "loss with random errors",
    "pca": "probe's loss",
}
_WORST_SHARE = 0.01


@dataclass
class Table:
    """Sums per document and cell, [documents, cells, 2 + columns], and how to read them."""

    journal: np.ndarray
    plan: Plan
    spool: Spool
    samples: int
    seed: int

    def rows(
        self, targets: list[Target], cell: int, own: np.ndarray | None, seed: tuple[int, ...]
    ) -> tuple[list[dict[str, Estimate]], int, int]:
        """Figures of each target in one cell, over documents `own` (bool, None for all); its tokens and documents."""
        records = np.asarray(self.journal[:, cell] if own is None else self.journal[own, cell])
        records = records[records[:, 0] > 0]
        tokens, nbytes = records[:, 0], records[:, 1] if self.spool.has_bytes else np.zeros(len(records))
        column = {key: 2 + i for i, key in enumerate(self.plan.columns)}
        sums = [_columns(target, records, column) for target in targets]
        if not len(records):
            return [], 0, 0
        return estimates(tokens, nbytes, sums, self.samples, (self.seed, *seed)), int(tokens.sum()), len(records)


def _columns(target: Target, records: np.ndarray, column: Mapping[tuple[str, str], int]) -> np.ndarray:
    missing = np.full(len(records), np.nan)

    def of(kind: str, figure: str) -> np.ndarray:
        run = target.runs.get(kind)
        return missing if run is None else records[:, column[run.name, figure]]

    losses = [of(kind, "ce") for kind in ("sae", *BASELINES)]
    return np.column_stack([records[:, column["clean", "ce"]], *losses, of("sae", "kl"), of("sae", "agree")])


def summarise(
    plan: Plan,
    saes: Mapping[str, Any],
    sums: Sums,
    journal: np.ndarray,
    spool: Spool,
    strata: Strata,
    samples: int,
    seed: int,
) -> tuple[list[SiteFigures], SiteFigures, list[CumulativeFigures], list[str]]:
    """Figures of each SAE, of all sites together, of the first l sites, and notes."""
    table = Table(journal, plan, spool, samples, seed)
    targets = plan.targets
    whole, _, _ = table.rows(targets, 0, None, ())
    parts: list[dict[str, dict[str, DomainFigures]]] = [{} for _ in targets]
    for axis, name, cell, own, key in _strata(spool, strata):
        rows, tokens, documents = table.rows(targets, cell, own, key)
        for part, row in zip(parts, rows, strict=False):
            part.setdefault(axis, {})[name] = _stratum(row, tokens, documents)
    made = [_site(t, row, part, saes, sums, spool.tokens) for t, row, part in zip(targets, whole, parts, strict=True)]
    several = targets[-1].name == ALL
    everything = made[-1] if several else replace(made[0], site=ALL, architecture="joint")
    curve_rows, _, _ = table.rows(plan.cumulative, 0, None, ())
    curve = [
        CumulativeFigures(target.name, len(target.entries), row["spliced"].value, _delta(row), row["kl"].value)
        for target, row in zip(plan.cumulative, curve_rows, strict=True)
    ]
    notes = [*plan.notes, *_document_notes(len(spool.domains), samples), *_target_notes(plan, sums, whole)]
    return made[:-1] if several else made, everything, curve, notes


def _strata(spool: Spool, strata: Strata) -> Iterator[tuple[str, str, int, np.ndarray | None, tuple[int, ...]]]:
    """(axis, name, cell, documents, seed) of every stratum that exists."""
    domains = np.asarray(spool.domains)
    for number, name in enumerate(sorted(set(spool.domains)), 1):
        yield "domain", name, 0, domains == name, (number,)
    for axis, cells in strata.slices().items():
        for name, cell in cells.items():
            yield axis, name, cell, None, ()
    axes = sorted({axis for labels in spool.labels for axis in labels})
    for index, axis in enumerate(axes, 1):
        values = np.asarray([labels.get(axis, "") for labels in spool.labels])
        for number, name in enumerate(sorted(set(values.tolist()) - {""}), 1):
            yield axis, name, 0, values == name, (index, number)


def _site(
    target: Target,
    row: dict[str, Estimate],
    strata: dict[str, dict[str, DomainFigures]],
    saes: Mapping[str, Any],
    sums: Sums,
    tokens: int,
) -> SiteFigures:
    run = target.runs["sae"].name
    l0, fvu, dead = mean_stats(sums.stats[run])
    return SiteFigures(
        site=target.name,
        architecture="joint" if target.name == ALL else saes[target.entries[0]].architecture,
        n_latents=sum(getattr(saes[entry], "n_latents", 0) for entry in target.entries),
        l0=finite(l0),
        fvu=finite(fvu),
        dead_fraction=finite(dead),
        ce=_ce(row),
        delta_ce=_delta(row),
        kl=row["kl"].value,
        kl_ci95=row["kl"].ci95,
        top1_agreement=row["agree"].value,
        top1_agreement_ci95=row["agree"].ci95,
        loss_recovered=_recovered(row),
        domains=strata.get("domain", {}),
        baselines={kind: _baseline(target, kind, row) for kind in BASELINES if kind in target.runs},
        strata={axis: named for axis, named in strata.items() if axis != "domain"},
        worst=_worst(strata, tokens),
        kl_histogram=sums.histograms[run].counts.tolist(),
    )


def _worst(strata: dict[str, dict[str, DomainFigures]], tokens: int) -> Worst | None:
    found = [
        Worst(axis, name, part.delta_ce.nats)
        for axis, named in strata.items()
        for name, part in named.items()
        if len(named) > 1 and part.delta_ce.nats is not None and part.tokens >= _WORST_SHARE * tokens
    ]
    return max(found, key=lambda one: one.delta_ce, default=None)


def _baseline(target: Target, kind: str, row: dict[str, Estimate]) -> BaselineFigures:
    delta = row[f"delta_{kind}"]
    over = row.get(f"over_{kind}", _negative_gap(row, kind))
    ranks = list(target.runs[kind].ranks) or None
    return BaselineFigures(row[kind].value, delta.value, delta.ci95, over.value, over.ci95, ranks)


def _negative_gap(row: dict[str, Estimate], kind: str) -> Estimate:
    spliced, other = row["spliced"].value, row[kind].value
    return Estimate(None if spliced is None or other is None else spliced - other, None)


def _stratum(row: dict[str, Estimate], tokens: int, documents: int) -> DomainFigures:
    return DomainFigures(tokens, documents, _ce(row), _delta(row), row["kl"].value, row["agree"].value, _recovered(row))


def _ce(row: dict[str, Estimate]) -> CrossEntropy:
    return CrossEntropy(*(row[name].value for name in COLUMNS[:4]))


def _delta(row: dict[str, Estimate]) -> DeltaCE:
    nats, bits = row["delta_nats"], row["delta_bits_per_byte"]
    return DeltaCE(nats.value, nats.ci95, bits.value, bits.ci95)


def _recovered(row: dict[str, Estimate]) -> LossRecovered:
    zero, mean = row["recovered_zero"], row["recovered_mean"]
    return LossRecovered(zero.value, mean.value, zero.ci95, mean.ci95)


def documents_table(plan: Plan, journal: np.ndarray, spool: Spool) -> Documents:
    """The figures of every document, for paired comparisons with other reports."""
    records = np.asarray(journal[:, 0])
    column = {key: 2 + i for i, key in enumerate(plan.columns)}

    def means(run: str, figure: str) -> list[float | None]:
        with np.errstate(invalid="ignore"):
            return [finite(v) for v in (records[:, column[run, figure]] / records[:, 0]).tolist()]

    counts = spool.per_document().astype(int)
    runs = {target.name: target.runs["sae"].name for target in plan.targets}
    return Documents(
        ids=spool.digests,
        domains=spool.domains,
        tokens=counts[:, 0].tolist(),
        bytes=counts[:, 1].tolist(),
        clean=means("clean", "ce"),
        spliced={name: means(run, "ce") for name, run in runs.items()},
        kl={name: means(run, "kl") for name, run in runs.items()},
    )


def _document_notes(documents: int, samples: int) -> list[str]:
    if samples < 1:
        return []
    if documents < 2:
        return ["There is one document, so there are no intervals: the bootstrap resamples documents."]
    if documents < FEW_DOCUMENTS:
        return [f"There are only {documents} documents: take the intervals as rough."]
    return []


def _target_notes(plan: Plan, sums: Sums, rows: list[dict[str, Estimate]]) -> list[str]:
    notes = []
    bad = dict(zip(plan.columns, sums.not_finite.tolist(), strict=True))
    for target, row in zip(plan.targets, rows, strict=True):
        where = "all sites together" if target.name == ALL else target.name
        losses = {"clean": bad["clean", "ce"], "spliced": bad[target.runs["sae"].name, "ce"]}
        losses |= {kind: bad[target.runs[kind].name, "ce"] for kind in BASELINES if kind in target.runs}
        for name, count in losses.items():
            if count:
                at = counted(count, "token")
                what = _NAMES.get(name, "clean loss")
                notes.append(f"{where}: the {what} is not finite at {at}, so figures that need it are null.")
        for name in ("zero", "mean"):
            clean, ablated = row["clean"].value, row[name].value
            if clean is not None and ablated is not None and ablated <= clean:
                notes.append(f"{where}: {name} ablation does not raise the loss, so loss recovered against it is null.")
    return notes
