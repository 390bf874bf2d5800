"""What a terminal and a page say alike: rows, cells, and the sentence that reads a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saekernels.display.numbers import number, percent, readable, short_site, signed, with_interval
from saekernels.eval.report.data import ReportData, SiteFigures

SITE_HEADINGS = (
    "site", "ΔCE nats [95 %]", "bits/byte", "KL", "top-1", "FVU", "L0", "dead",
    "CE", "CE mean", "CE zero", "rec. mean", "rec. zero",
)  # fmt: skip


def rows_of(report: ReportData) -> list[SiteFigures]:
    """Every SAE, and all sites together where there are several."""
    return [*report.sites, report.all_sites] if len(report.sites) > 1 else list(report.sites)


def label(row: SiteFigures) -> str:
    """The name of a row in charts and tables."""
    return "all together" if row.architecture == "joint" else short_site(row.site)


def site_cells(row: SiteFigures) -> list[str]:
    """The cells of one row, under SITE_HEADINGS."""
    return [
        "all together" if row.architecture == "joint" else row.site,
        with_interval(row.delta_ce.nats, row.delta_ce.ci95),
        signed(row.delta_ce.bits_per_byte),
        number(row.kl),
        percent(row.top1_agreement),
        number(row.fvu),
        number(row.l0, 1),
        percent(row.dead_fraction),
        number(row.ce.spliced),
        number(row.ce.mean),
        number(row.ce.zero),
        percent(row.loss_recovered.mean),
        percent(row.loss_recovered.zero),
    ]


def reading(report: ReportData) -> str:
    """One sentence that says what the result means."""
    row = report.all_sites
    many = len(report.sites) > 1
    subject = f"Splicing all {len(report.sites)} SAEs together" if many else f"Splicing {report.sites[0].site}"
    if row.delta_ce.nats is None:
        return f"{subject} gives a loss that is not finite."
    verb = "raises" if row.delta_ce.nats >= 0 else "lowers"
    text = (
        f"{subject} {verb} the loss from {number(row.ce.clean)} to {number(row.ce.spliced)} nats per token "
        f"({with_interval(row.delta_ce.nats, row.delta_ce.ci95)}"
    )
    if row.delta_ce.bits_per_byte is not None:
        text += f"; {signed(row.delta_ce.bits_per_byte)} bits per byte"
    text += ")" + (f"; mean ablation gives {number(row.ce.mean)}" if row.ce.mean is not None else "")
    alone = {one.site: one.delta_ce.nats for one in report.sites if one.delta_ce.nats is not None}
    if many and alone:
        low, high = min(alone, key=alone.__getitem__), max(alone, key=alone.__getitem__)
        text += f"; alone, a site costs {signed(alone[low])} ({low}) to {signed(alone[high])} ({high})"
    worst = worst_domain(row)
    if worst is not None:
        text += f"; the worst domain is {worst} with {signed(row.domains[worst].delta_ce.nats)}"
    targets = report.extras.get("effective_compute", {}).get("targets", {})
    name = row.site if row.site in targets else report.sites[0].site
    if name in targets:
        text += f". It {worth(targets[name])}"
    return text + "."


def worst_domain(row: SiteFigures) -> str | None:
    """The domain with the largest ΔCE, if there are several."""
    known = {name: part.delta_ce.nats for name, part in row.domains.items() if part.delta_ce.nats is not None}
    return max(known, key=known.__getitem__) if len(known) > 1 else None


def worth(one: Mapping[str, Any]) -> str:
    """ "predicts like a model of 940 k parameters, 25 % of the training compute [21, 30]"."""
    if one["outside"]:
        return f"predicts {one['outside']} of the family"
    text = f"predicts like a model of {readable(one['parameters'])} parameters"
    if one["share"] is not None:
        text += f", {100 * one['share']:.0f} % of the training compute"
        if one["share_ci95"]:
            low, high = one["share_ci95"]
            text += f" [{100 * low:.0f}, {100 * high:.0f}]"
    elif one["parameters_ci95"]:
        low, high = one["parameters_ci95"]
        text += f" [{readable(low)}, {readable(high)}]"
    return text
