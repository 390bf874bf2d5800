"""From filled sums to what is reported of a replaced model."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saekernels.eval.circumstances import data_notes
from saekernels.eval.passes.left import rule_text
from saekernels.eval.report.data import versions
from saekernels.eval.store.window_files import Spool
from saekernels.eval.studies.crosslayer import accounting
from saekernels.eval.studies.crosslayer.figures import Losses, extrapolation, strata_figures, transfer
from saekernels.eval.studies.crosslayer.fits import MOST_WIDTH, Fits
from saekernels.eval.studies.crosslayer.names import domain_of, meaning
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.eval.studies.crosslayer.totals import SURE, Totals, columns_of
from saekernels.eval.sums.accumulate import SiteStats
from saekernels.eval.sums.figures import finite
from saekernels.eval.text.strata import Strata
from saekernels.eval.text.windows import MASK
from saekernels.splice.leave import Leave

SCHEMA = 2


@dataclass(frozen=True)
class Measured:
    """All that the passes have left. records: [documents, cells, 2 + columns]; half: of the documents fitted on."""

    subject: Subject
    beside: Subject | None
    spool: Spool
    names: Sequence[str]
    records: np.ndarray
    totals: Totals
    fits: Fits
    ranks: dict[str, list[int]]
    half: Sequence[bool]
    strata: Strata
    replaced: dict[str, int]


def result(
    found: Measured, samples: int, seed: int, rule: Leave, notes: Sequence[str], wanted: int | None
) -> dict[str, Any]:
    """All of it, JSON-ready."""
    names, spool = found.names, found.spool
    losses = Losses(found.records[:, 0], names, samples, (seed, 20))
    runs = []
    for name in names:
        row = {"run": name, "meaning": meaning(name, found.subject), **losses.figures(name)}
        domain = domain_of(name)[1]
        if domain is not None:
            row["domain"] = domain
        if name in found.ranks:
            row["ranks"] = found.ranks[name]
        if name != names[0]:
            row[f"over_{names[0]}"] = losses.difference(name, names[0])
        runs.append(row)
    domains = sorted(set(spool.domains))
    several = len(domains) > 1
    return {
        "schema": SCHEMA,
        "replacement": found.subject.kind,
        "causal": found.subject.causal,
        "documents": {"fitted": sum(found.half), "measured": len(found.half) - sum(found.half)},
        "tokens": losses.tokens,
        "unsure_tokens": losses.unsure,
        "clean_ce": losses.ce("clean"),
        "runs": runs,
        "compounding": losses.difference("joint", "teacher_forced") if found.subject.causal else None,
        "layers": _layers(found),
        **({"used": int(found.totals.stats["shared"][0].fired.sum())} if found.subject.shared else {}),
        "l0": _l0(found),
        "accounting": _accounting(found),
        "strata": strata_figures(found.records, spool.domains, found.strata.slices(), names, samples, seed),
        "extrapolation": {
            "rows": [
                {**row, "positions": found.fits.rows(row["domain"])}
                for row in extrapolation(found.records, spool.domains, names, samples, seed)
            ],
            "transfer": transfer(found.records, spool.domains, names, samples, seed),
        }
        if several
        else None,
        "mask": MASK + rule_text(rule),
        "unsure_below": SURE,
        "seed": seed,
        "bootstrap": {"samples": samples, "unit": "document", "level": 0.95},
        "notes": [*data_notes(spool, wanted), *notes, *_notes(found, several, losses)],
        "versions": versions(),
    }


def _layers(found: Measured) -> list[dict[str, Any]]:
    stats = found.totals.stats
    rows = []
    for number, site in enumerate(found.subject.sites):
        kinds = [kind for kind in ("joint", "teacher_forced") if kind in stats]
        own = {"layer": number, "site": site}
        own |= {f"fvu_{kind}": finite(stats[kind][number].fvu) for kind in (*kinds, "drift") if kind in stats}
        own |= {f"l0_{kind}": finite(stats[kind][number].l0) for kind in kinds}
        own["latents"] = found.subject.layer(number).n_latents
        own |= {f"used_{kind}": int(stats[kind][number].fired.sum()) for kind in kinds}
        rows.append(own)
    return rows


def _l0(found: Measured) -> dict[str, dict[str, float | None]]:
    """Active latents per position over all layers, and pairs of a latent and a layer that it writes at."""

    def both(subject: Subject, stats: Sequence[SiteStats]) -> dict[str, float | None]:
        l0 = [one.l0 for one in stats]
        pairs = [one * subject.targets(number) for number, one in enumerate(l0)]
        return {"latents": finite(sum(l0)), "pairs": finite(sum(pairs))}

    stats = found.totals.stats
    kinds: tuple[str, ...] = ("joint", "teacher_forced")
    made = {kind: both(found.subject, stats[kind]) for kind in kinds if kind in stats}
    if "shared" in stats:
        made["teacher_forced"]["latents"] = finite(stats["shared"][0].l0)
    if found.beside is not None:
        made["beside"] = both(found.beside, found.totals.stats["beside"])
    return made


def _accounting(found: Measured) -> dict[str, dict[str, float]]:
    l0 = [one.l0 if one.positions else 0.0 for one in found.totals.stats[found.names[0]]]
    made: dict[str, dict[str, float]] = {"replaced": dict(found.replaced)} if found.replaced["parameters"] else {}
    made["replacement"] = accounting.replacement(found.subject, l0)
    if found.beside is not None:
        other = [one.l0 if one.positions else 0.0 for one in found.totals.stats["beside"]]
        made["beside"] = accounting.replacement(found.beside, other)
    for name in found.ranks:
        if domain_of(name)[1] is None:
            made[name] = dict(accounting.affine(found.subject, found.ranks[name], name))
    return made


def _notes(found: Measured, several: bool, losses: Losses) -> list[str]:
    notes = []
    if not found.subject.causal:
        notes.append(
            f"A {found.subject.kind} writes first what hangs on what it reads last, so it cannot run in a pass: its "
            "codes are those of a clean pass over the same tokens (teacher-forced), put in at all layers or at one."
        )
        last = f"only_{len(found.subject.sites) - 1}"
        if last in found.names and losses.ce(last) == losses.ce("teacher_forced"):
            notes.append(f"What the last layer puts in overwrites the rest: teacher_forced is {last}.")
    if found.fits.affine and not found.fits.together and found.subject.shared:
        notes.append(f"The layers together read more than {MOST_WIDTH:,} numbers: affine_shared is left out.")
    if found.fits.earlier is not None:
        told = sum(one.rank for one in found.fits.earlier.told[:-1])
        notes.append(
            f"The layers together read more than {MOST_WIDTH:,} numbers: affine_across is the best map from what a "
            f"layer reads and {told:,} combinations at most of what earlier ones read, and is not fitted on one domain."
        )
    if not several:
        notes.append("One domain alone: nothing is said of other ones.")
    fitted = collections.Counter(found.spool.domains)
    few = [name for name, number in sorted(fitted.items()) if number < 2]
    if several and few:
        notes.append(f"One document alone, so measured nowhere: {', '.join(few)}.")
    if not losses.unsure:
        notes.append("No prediction is in Anthropic's subset: its figures are left out.")
    if found.beside is not None and set(found.beside.sites) != set(found.subject.sites):
        notes.append("The other dictionary replaces other sites.")
    broken = found.totals.not_finite.tolist()
    for (run, figure), count in zip(columns_of(found.names), broken, strict=True):
        if count and figure == "ce":
            notes.append(f"Cross-entropy of {run}: not finite at {count:,} tokens, so its figures are left out.")
    return notes
