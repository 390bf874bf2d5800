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
from saekernels.eval.studies.crosslayer.runs import domain_of, meaning
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
        if name != "joint":
            row["over_joint"] = losses.difference(name, "joint")
        runs.append(row)
    domains = sorted(set(spool.domains))
    several = len(domains) > 1
    return {
        "schema": SCHEMA,
        "replacement": "cross-layer transcoder" if found.subject.across else "transcoders",
        "documents": {"fitted": sum(found.half), "measured": len(found.half) - sum(found.half)},
        "tokens": losses.tokens,
        "unsure_tokens": losses.unsure,
        "clean_ce": losses.ce("clean"),
        "runs": runs,
        "compounding": losses.difference("joint", "teacher_forced"),
        "layers": _layers(found),
        "l0": _l0(found),
        "accounting": _accounting(found),
        "strata": strata_figures(found.records, spool.domains, found.strata.slices(), names, samples, seed),
        "extrapolation": {
            "rows": extrapolation(found.records, spool.domains, names, samples, seed),
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
        joint, forced, drift = (stats[kind][number] for kind in ("joint", "teacher_forced", "drift"))
        own = {
            "layer": number,
            "site": site,
            "fvu_joint": finite(joint.fvu),
            "fvu_teacher_forced": finite(forced.fvu),
            "fvu_drift": finite(drift.fvu),
            "l0_joint": finite(joint.l0),
            "l0_teacher_forced": finite(forced.l0),
            "latents": found.subject.layer(number).n_latents,
            "used_joint": int(joint.fired.sum()),
            "used_teacher_forced": int(forced.fired.sum()),
        }
        rows.append(own)
    return rows


def _l0(found: Measured) -> dict[str, dict[str, float | None]]:
    """Active latents per position over all layers, and pairs of a latent and a layer that it writes at."""

    def both(subject: Subject, stats: Sequence[SiteStats]) -> dict[str, float | None]:
        l0 = [one.l0 for one in stats]
        pairs = [one * subject.targets(number) for number, one in enumerate(l0)]
        return {"latents": finite(sum(l0)), "pairs": finite(sum(pairs))}

    made = {kind: both(found.subject, found.totals.stats[kind]) for kind in ("joint", "teacher_forced")}
    if found.beside is not None:
        made["beside"] = both(found.beside, found.totals.stats["beside"])
    return made


def _accounting(found: Measured) -> dict[str, dict[str, float]]:
    l0 = [one.l0 if one.positions else 0.0 for one in found.totals.stats["joint"]]
    made: dict[str, dict[str, float]] = {
        "replaced": dict(found.replaced),
        "replacement": accounting.replacement(found.subject, l0),
    }
    if found.beside is not None:
        other = [one.l0 if one.positions else 0.0 for one in found.totals.stats["beside"]]
        made["beside"] = accounting.replacement(found.beside, other)
    for name in found.ranks:
        if domain_of(name)[1] is None:
            made[name] = dict(accounting.affine(found.subject, found.ranks[name], "across" in name))
    return made


def _notes(found: Measured, several: bool, losses: Losses) -> list[str]:
    notes = []
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
