"""The report as plain text: the sentence, tables with the loss first, and what the abbreviations mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from saekernels.display.numbers import counted, number, percent, percent_interval, short_sites, signed, with_interval
from saekernels.display.tables import strong, text_table, wrapped
from saekernels.eval.report.breadth_text import gap_sentence
from saekernels.eval.report.data import DeltaCE, DomainFigures, ReportData, SiteFigures, Worst
from saekernels.eval.report.paired import HEADINGS, paired_rows
from saekernels.eval.report.reading import (
    ABBREVIATIONS,
    SITE_HEADINGS,
    headed,
    reading,
    rows_of,
    site_cells,
    weights_told,
    worst_of,
)
from saekernels.eval.report.reuse.text import reuse_sentence

WORST = "◀"
_TOGETHER = "together"
_BASELINES = {"random": "random error", "pca": "PCA probe", "cumulative": "up to here", "zero": "zeros", "mean": "mean"}
_MOST_SITE_COLUMNS = 6
# The least share of the tokens with which a stratum is called the worst.
_LEAST_SHARE = 0.01

Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""


def as_text(report: ReportData, width: int | None = None, styled: bool | None = None) -> str:
    """The whole report. `width`, `styled`: as of `display.tables.text_table`."""
    names = _names(report)
    joint = len(report.sites) > 1

    def shown(table: Table, last_is_joint: bool = False) -> str:
        headings, rows = table
        return text_table(headed(headings, rows), rows, width=width, styled=styled, last_is_joint=last_is_joint)

    parts = [strong(wrapped(reading(report), width), styled), wrapped(_facts(report), width)]
    parts.append(shown(site_table(report, names), joint))
    if report.all_sites.baselines:
        parts.append(shown(baseline_table(report, names), joint))
    if paired := paired_rows(report, names):
        parts.append(shown((HEADINGS, paired)))
    if "tasks" in report.extras:
        parts += [shown(task_table(report)), wrapped(report.extras["tasks"]["reading"], width)]
    if "breadth" in report.extras:
        parts.append(wrapped(gap_sentence(report.extras["breadth"]), width))
    if "reuse" in report.extras:
        parts.append(wrapped(reuse_sentence(report.extras["reuse"]), width))
    axes = {"domain": report.all_sites.domains, **report.all_sites.strata}
    parts += [shown(stratum_table(report, axis, names)) for axis, strata in axes.items() if len(strata) > 1]
    parts.append(wrapped("\n".join(f"Note: {note}" for note in report.notes), width))
    parts.append(wrapped(_legend("\n".join(parts), report.all_sites.worst), width))
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _legend(text: str, worst: Worst | None) -> str:
    """What the marks and abbreviations in the text mean, those that it has."""
    lines = [f"{name}: {meaning}." for name, meaning in ABBREVIATIONS.items() if _occurs(name, text)]
    if WORST in text:
        of_all = f"; of all, {worst.axis} {worst.stratum} with {signed(worst.delta_ce)}" if worst else ""
        lines.insert(0, f"{WORST} the worst of its table, of at least 1 % of the tokens{of_all}.")
    return "\n".join(lines)


def _occurs(name: str, text: str) -> bool:
    return re.search(rf"(?<![\wΔ/]){re.escape(name)}(?![\w/])", text) is not None


def _facts(report: ReportData) -> str:
    counts = f"{counted(report.tokens, 'token')} of {counted(report.documents, 'document')}"
    text = f"{report.model}: {counts}, clean CE {number(report.all_sites.ce.clean)} nats per token"
    site, name = next(iter(_names(report).items()))
    text += weights_told(report)
    return text + (f"; {name} stands for {site}" if name != site and len(report.sites) > 1 else "")


def _names(report: ReportData) -> dict[str, str]:
    """Rows' names by site, without what all begin with."""
    _, names = short_sites([one.site for one in report.sites])
    return names


def _name(row: SiteFigures, names: Mapping[str, str]) -> str:
    return _TOGETHER if row.architecture == "joint" else names[row.site]


def site_table(report: ReportData, names: Mapping[str, str]) -> Table:
    """One row per site, all sites together last."""
    return list(SITE_HEADINGS), [[_name(row, names), *site_cells(row)[1:]] for row in rows_of(report)]


def baseline_table(report: ReportData, names: Mapping[str, str]) -> Table:
    """ΔCE of each baseline beside the SAE's; and of the first l sites together, where there are several."""
    curve = {one.site: one.delta_ce for one in report.cumulative}
    kinds = [kind for kind in _BASELINES if kind in report.all_sites.baselines or (kind == "cumulative" and curve)]
    rows = []
    for row in rows_of(report):
        cells = [_name(row, names), signed(row.delta_ce.nats)]
        for kind in kinds:
            if kind == "cumulative":
                here = curve.get(row.site, DeltaCE(None, None, None, None))
                cells.append(with_interval(here.nats, here.ci95))
            else:
                cells.append(with_interval(row.baselines[kind].delta_ce, row.baselines[kind].delta_ce_ci95))
        rows.append(cells)
    return ["ΔCE with", "the SAE", *(_BASELINES[kind] for kind in kinds)], rows


def task_table(report: ReportData) -> Table:
    """One row per narrow task."""
    headings = ["task", "prompts", "clean logit diff.", "right", "spliced", "right", "recovered"]
    rows = [
        [
            one["name"],
            str(one["prompts"]),
            number(one["clean"]),
            percent(one["clean_accuracy"]),
            number(one["spliced"]),
            percent(one["spliced_accuracy"]),
            percent_interval(one["recovered"], one["recovered_ci95"]),
        ]
        for one in report.extras["tasks"]["tasks"]
    ]
    return headings, rows


def stratum_table(report: ReportData, axis: str, names: Mapping[str, str]) -> Table:
    """ΔCE by domain or by another axis: all sites together, and each site alone if there are few; the worst marked."""
    whole = _strata(report.all_sites, axis)
    sites: Sequence[SiteFigures] = report.sites if 1 < len(report.sites) <= _MOST_SITE_COLUMNS else []
    worst = worst_of(whole, _LEAST_SHARE * report.tokens)
    together = _TOGETHER if len(report.sites) > 1 else "the SAE"
    headings = [f"ΔCE by {axis}", "tokens", "clean CE", together, *(names[site.site] for site in sites)]
    rows = []
    for name, part in whole.items():
        marked = f"{name} {WORST}" if name == worst else name
        change = with_interval(part.delta_ce.nats, part.delta_ce.ci95)
        cells = [marked, f"{part.tokens:,}", number(part.ce.clean), change]
        alone = [_strata(site, axis).get(name) for site in sites]
        rows.append([*cells, *(signed(one.delta_ce.nats if one else None) for one in alone)])
    return headings, rows


def _strata(row: SiteFigures, axis: str) -> Mapping[str, DomainFigures]:
    return row.domains if axis == "domain" else row.strata.get(axis, {})
