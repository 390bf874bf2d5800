"""Sections of the HTML page that a report may have: (heading, HTML), or None where there is nothing to show."""

from __future__ import annotations

from html import escape
from typing import Any

from saekernels.display.charts import curves, dial, heat_map, histogram
from saekernels.display.html import html_table
from saekernels.display.numbers import number, percent, short_site, signed, with_interval
from saekernels.eval.report.breadth_page import breadth_parts
from saekernels.eval.report.breadth_text import gap_sentence
from saekernels.eval.report.data import ReportData, SiteFigures
from saekernels.eval.report.reading import label, rows_of, worth
from saekernels.eval.sums.accumulate import KlHistogram

Section = tuple[str, str] | None
_MOST_COLUMNS = 8
_BASELINE_NAMES = {
    "zero": "zeros",
    "mean": "the mean",
    "random": "a random error of the SAE's norm",
    "pca": "a PCA probe of the SAE's rank",
}


def effective_section(report: ReportData) -> Section:
    """The dial, and what each target is worth."""
    found = report.extras.get("effective_compute")
    if not found:
        return None
    joint = found["targets"].get(report.all_sites.site) or found["targets"].get(report.sites[0].site)
    lines = [f"<li>{escape(label(row))}: {escape(worth(found['targets'][row.site]))}</li>" for row in rows_of(report)
             if row.site in found["targets"]]  # fmt: skip
    text = f"<ul>{''.join(lines)}</ul>"
    text += f'<p class="soft">Interpolated in a family of {len(found["members"])} models measured on the same text.</p>'
    if joint and joint["share"] is not None:
        interval = tuple(joint["share_ci95"]) if joint["share_ci95"] else None
        picture = dial(joint["share"], interval, f"{100 * joint['share']:.0f} % of the training compute")
        return "Effective compute", f'<div class="side"><div>{picture}</div><div>{text}</div></div>'
    return "Effective compute", text


def cumulative_section(report: ReportData) -> Section:
    """ΔCE of the first l sites together, beside the sum of each alone."""
    if not report.cumulative:
        return None
    labels = [short_site(one.site) for one in report.cumulative]
    together = [one.delta_ce.nats for one in report.cumulative]
    alone = {row.site: row.delta_ce.nats for row in report.sites}
    summed: list[float | None] = []
    total: float | None = 0.0
    for one in report.cumulative:
        step = alone.get(one.site)
        total = None if total is None or step is None else total + step
        summed.append(total)
    bands = {"spliced together": [one.delta_ce.ci95 for one in report.cumulative]}
    lines = {"spliced together": together, "sum of each alone": summed}
    picture = curves(labels, lines, "ΔCE, nats per token", "all sites up to and with", lambda name: False, bands)
    return "Splicing layer after layer", picture


def baseline_section(report: ReportData) -> Section:
    """ΔCE of every baseline beside that of the SAE."""
    kinds = [kind for kind in _BASELINE_NAMES if kind in report.all_sites.baselines]
    if not kinds:
        return None
    rows = []
    for row in rows_of(report):
        cells = [label(row), with_interval(row.delta_ce.nats, row.delta_ce.ci95)]
        for kind in kinds:
            one = row.baselines[kind]
            cells.append(with_interval(one.delta_ce, one.delta_ce_ci95))
        rows.append(cells)
    headings = ["ΔCE with", "the SAE", *(_BASELINE_NAMES[kind] for kind in kinds)]
    probes = report.all_sites.baselines.get("pca")
    ranks = f" Ranks: {', '.join(map(str, dict.fromkeys(probes.rank)))}." if probes and probes.rank else ""
    text = (
        '<p class="soft">Where the SAE costs more than a random error of the same norm, what it gets wrong is what the '
        "model uses. Where a PCA probe of its rank costs less, sparsity has bought nothing in loss."
        f"{ranks}</p>"
    )
    return "Against honest baselines", html_table(headings, rows, last_is_joint=len(rows) > 1) + text


def strata_section(report: ReportData) -> Section:
    """ΔCE by stratum and target as a heat map, the worst named."""
    rows = rows_of(report)[-_MOST_COLUMNS:]
    axes: dict[str, Any] = {"domain": rows[-1].domains, **rows[-1].strata}
    names, values = [], []
    for axis, parts in axes.items():
        for name, part in parts.items():
            if part.tokens and len(parts) > 1:
                names.append(f"{axis} {name}")
                values.append([_delta(row, axis, name) for row in rows])
    if not names:
        return None
    worst = report.all_sites.worst
    text = "" if worst is None else (
        f"<p>The worst stratum of at least 1 % of the tokens: {escape(worst.axis)} {escape(worst.stratum)}, "
        f"{signed(worst.delta_ce)} nats per token; all tokens: {signed(report.all_sites.delta_ce.nats)}.</p>"
    )  # fmt: skip
    note = (
        '<p class="soft">Position: tokens of context before the predicted one. Frequency: the predicted token\'s share '
        "of this text.</p>"
    )
    return "By stratum", text + heat_map(names, [label(r) for r in rows], values, "ΔCE, nats per token") + note


def _delta(row: SiteFigures, axis: str, name: str) -> float | None:
    parts = row.domains if axis == "domain" else row.strata.get(axis, {})
    return parts[name].delta_ce.nats if name in parts else None


def breadth_sections(report: ReportData) -> list[tuple[str, str]]:
    """What narrow probes cost inside and outside of their slice, if that was measured."""
    found = report.extras.get("breadth")
    if not found:
        return []
    (heading, body), *rest = breadth_parts(found)
    return [(heading, f"<p>{escape(gap_sentence(found))}</p>{body}"), *rest]


def kl_section(report: ReportData) -> Section:
    """How KL is spread over tokens."""
    rows = [row for row in rows_of(report)[-6:] if sum(row.kl_histogram)]
    if not rows:
        return None
    counts = {label(row): row.kl_histogram for row in rows}
    return "Where the divergence is", histogram(KlHistogram.edges(), counts, "KL(clean ‖ spliced) of a token, nats")


def task_section(report: ReportData) -> Section:
    """Narrow tasks beside the full distribution."""
    tasks = report.extras.get("tasks")
    if not tasks:
        return None
    headings = [
        "task",
        "prompts",
        "clean logit difference",
        "clean accuracy",
        "spliced",
        "recovered [95 %]",
        "accuracy",
    ]
    rows = [
        [
            one["name"],
            str(one["prompts"]),
            number(one["clean"]),
            percent(one["clean_accuracy"]),
            number(one["spliced"]),
            _share(one["recovered"], one["recovered_ci95"]),
            percent(one["spliced_accuracy"]),
        ]
        for one in tasks["tasks"]
    ]
    text = f"<p>{escape(tasks['reading'])}</p>"
    return "Narrow tasks beside the full distribution", text + html_table(headings, rows)


def _share(value: float | None, interval: Any) -> str:
    if value is None:
        return "-"
    return percent(value) + (f" [{percent(interval[0])}, {percent(interval[1])}]" if interval else "")
