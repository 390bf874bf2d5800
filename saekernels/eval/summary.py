"""From filled targets to the report's rows, with a note for every figure that has to be left out."""

from __future__ import annotations

import numpy as np

from .accumulate import COLUMNS, mean_stats
from .figures import Estimate, estimates, finite
from .report import CrossEntropy, DeltaCE, DomainFigures, LossRecovered, SiteFigures
from .runs import ALL, Target
from .windows import Selection
from .wording import counted

FEW_DOCUMENTS = 20
_NAMES = {"clean": "clean loss", "spliced": "spliced loss", "zero": "zero-ablated loss", "mean": "mean-ablated loss"}


def summarise(
    targets: list[Target], per_document: np.ndarray, selection: Selection, samples: int, seed: int
) -> tuple[list[SiteFigures], SiteFigures, list[str]]:
    """Figures of each site, of all sites together, and notes. per_document [documents, 2]: counted tokens and bytes."""
    domains = np.asarray(selection.domains)
    nbytes = per_document[:, 1] if selection.has_bytes else np.zeros(len(domains))
    sums = [target.losses.sums.numpy() for target in targets]
    whole = estimates(per_document[:, 0], nbytes, sums, samples, (seed,))
    parts: list[dict[str, DomainFigures]] = [{} for _ in targets]
    for number, name in enumerate(sorted(set(selection.domains)), 1):
        own = domains == name
        rows = estimates(per_document[own, 0], nbytes[own], [s[own] for s in sums], samples, (seed, number))
        for part, row in zip(parts, rows, strict=True):
            part[name] = _domain(row, int(per_document[own, 0].sum()), int(own.sum()))
    made = [_site(target, row, part) for target, row, part in zip(targets, whole, parts, strict=True)]
    everything = made[-1] if len(made) > 1 else _as_joint(made[0])
    sites = made[:-1] if len(made) > 1 else made
    return sites, everything, [*_document_notes(len(domains), samples), *_target_notes(targets, whole)]


def _site(target: Target, row: dict[str, Estimate], domains: dict[str, DomainFigures]) -> SiteFigures:
    l0, fvu, dead = mean_stats(target.stats)
    return SiteFigures(
        site=target.name,
        architecture="joint" if target.name == ALL else next(iter(target.saes.values())).architecture,
        n_latents=sum(sae.n_latents for sae in target.saes.values()),
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
        domains=domains,
    )


def _as_joint(row: SiteFigures) -> SiteFigures:
    return SiteFigures(**{**vars(row), "site": ALL, "architecture": "joint"})


def _domain(row: dict[str, Estimate], tokens: int, documents: int) -> DomainFigures:
    return DomainFigures(tokens, documents, _ce(row), _delta(row), row["kl"].value, row["agree"].value, _recovered(row))


def _ce(row: dict[str, Estimate]) -> CrossEntropy:
    return CrossEntropy(*(row[name].value for name in COLUMNS[:4]))


def _delta(row: dict[str, Estimate]) -> DeltaCE:
    nats, bits = row["delta_nats"], row["delta_bits_per_byte"]
    return DeltaCE(nats.value, nats.ci95, bits.value, bits.ci95)


def _recovered(row: dict[str, Estimate]) -> LossRecovered:
    zero, mean = row["recovered_zero"], row["recovered_mean"]
    return LossRecovered(zero.value, mean.value, zero.ci95, mean.ci95)


def _document_notes(documents: int, samples: int) -> list[str]:
    if samples < 1:
        return []
    if documents < 2:
        return ["There is one document, so there are no intervals: the bootstrap resamples documents."]
    if documents < FEW_DOCUMENTS:
        return [f"There are only {documents} documents: take the intervals as rough."]
    return []


def _target_notes(targets: list[Target], rows: list[dict[str, Estimate]]) -> list[str]:
    notes = []
    for target, row in zip(targets, rows, strict=True):
        where = "all sites together" if target.name == ALL else target.name
        for name, bad in zip(COLUMNS, target.losses.not_finite.tolist(), strict=True):
            if bad and name in _NAMES:
                at = counted(bad, "token")
                notes.append(f"{where}: the {_NAMES[name]} is not finite at {at}, so figures that need it are null.")
        for name in ("zero", "mean"):
            clean, ablated = row["clean"].value, row[name].value
            if clean is not None and ablated is not None and ablated <= clean:
                notes.append(f"{where}: {name} ablation does not raise the loss, so loss recovered against it is null.")
    return notes
