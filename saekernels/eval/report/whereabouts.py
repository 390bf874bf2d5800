"""Sections of the HTML page that say where the cost lies: by domain, by stratum, by token, by task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saekernels.display.html import Cell
from saekernels.display.numbers import number, percent, signed, with_interval
from saekernels.display.rows import Scale, axis, column, interval_line, linear_scale, log_scale, point, row_chart
from saekernels.eval.report.abbreviations import marked, note, table
from saekernels.eval.report.data import DomainFigures, ReportData, SiteFigures
from saekernels.eval.report.reading import rows_of
from saekernels.eval.report.sections import Section, colour_of, delta_chart, delta_scale, name_cell, spread
from saekernels.eval.sums.accumulate import KlHistogram


def domain_section(report: ReportData) -> Section:
    """ΔCE of all sites together by domain, worst first."""
    domains = report.all_sites.domains
    if len(domains) < 2:
        return None
    names = sorted(domains, key=lambda name: -(domains[name].delta_ce.nats or 0.0))
    scale = delta_scale([part.delta_ce for part in domains.values()])
    lines: list[list[str | Cell]] = []
    for name in names:
        part = domains[name]
        cells = [with_interval(part.delta_ce.nats, part.delta_ce.ci95), signed(part.delta_ce.bits_per_byte)]
        cells += [number(part.kl), percent(part.top1_agreement), number(part.ce.clean), number(part.ce.spliced)]
        chart = delta_chart(scale, part.delta_ce, colour_of(report.all_sites))
        lines.append([name, chart, *cells, f"{part.documents:,}", f"{part.tokens:,}"])
    headings: list[str | Cell] = [
        "domain",
        axis(scale, marked("ΔCE, nats per token")),
        "ΔCE nats [95 %]",
        "bits/byte",
        "KL",
        "top-1",
    ]
    headings += ["CE clean", "CE spliced", "documents", "tokens"]
    together = ", all sites spliced" if len(report.sites) > 1 else ""
    return f"By domain{together}", table(headings, lines)


def strata_section(report: ReportData) -> Section:
    """ΔCE by stratum and target as a table shaded by cost, the worst named."""
    rows = rows_of(report)[::-1] if len(report.sites) == 1 else [report.all_sites, *report.sites]
    axes: dict[str, dict[str, DomainFigures]] = {"domain": rows[0].domains, **rows[0].strata}
    names = [
        (kind, name, part.tokens) for kind, parts in axes.items() if len(parts) > 1 for name, part in parts.items()
    ]
    names = [one for one in names if one[2]]
    if not names:
        return None
    found = {(row.site, kind, name): _part(row, kind, name) for row in rows for kind, name, _ in names}
    most = max(map(_cost, found.values()))
    lines: list[list[str | Cell]] = [
        [f"{kind} {name}", f"{tokens:,}", *(_shaded(found[row.site, kind, name], row, most) for row in rows)]
        for kind, name, tokens in names
    ]
    worst = report.all_sites.worst
    text = "" if worst is None else (
        f"The worst stratum of at least 1 % of the tokens: {worst.axis} {worst.stratum}, "
        f"{signed(worst.delta_ce)} nats per token; all tokens: {signed(report.all_sites.delta_ce.nats)}."
    )  # fmt: skip
    explained = (
        "ΔCE, nats per token; hover shows intervals and tokens. Position: tokens of context before the predicted one. "
        "Frequency: the predicted token's share of this text."
    )
    body = table(["stratum", "tokens", *map(name_cell, rows)], lines)
    return "By stratum", (f"<p>{marked(text)}</p>" if text else "") + body + note(explained)


def _part(row: SiteFigures, kind: str, name: str) -> DomainFigures | None:
    parts = row.domains if kind == "domain" else row.strata.get(kind, {})
    return parts.get(name)


def _cost(part: DomainFigures | None) -> float:
    return max((part.delta_ce.nats if part else None) or 0.0, 0.0)


def _shaded(part: DomainFigures | None, row: SiteFigures, most: float) -> str | Cell:
    if part is None or part.delta_ce.nats is None:
        return "-"
    delta = part.delta_ce
    interval = f"95 % [{signed(delta.ci95[0])}, {signed(delta.ci95[1])}]" if delta.ci95 else "no interval"
    shade = _cost(part) / most if most else 0.0
    kind = "joint" if row.architecture == "joint" else "single"
    return Cell(signed(delta.nats), f"{interval}\n{part.tokens:,} tokens", kind, shade)


def kl_section(report: ReportData) -> Section:
    """How KL is spread over tokens: one histogram per row, all on the same scales."""
    rows = [row for row in rows_of(report) if sum(row.kl_histogram)]
    if not rows:
        return None
    edges = KlHistogram.edges()
    ratio = edges[1] / edges[0]
    # The first and the last bin are open; they are drawn as wide as the others.
    bounds = [edges[0] / ratio, *edges, edges[-1] * ratio]
    used = [at for row in rows for at, count in enumerate(row.kl_histogram) if count]
    scale = log_scale([bounds[min(used)], bounds[max(used) + 1]])
    most = max(max(row.kl_histogram) / sum(row.kl_histogram) for row in rows)
    lines: list[list[str | Cell]] = []
    for row in rows:
        total = sum(row.kl_histogram)
        shares = [count / total for count in row.kl_histogram]
        marks = [
            column(scale, bounds[at], bounds[at + 1], share / most, colour_of(row))
            for at, share in enumerate(shares)
            if share
        ]
        # bounds[at] is the lower edge of bin at.
        above = [
            sum(share for low, share in zip(bounds[:-1], shares, strict=True) if low > 0.999 * at) for at in (0.1, 1)
        ]
        tip = f"highest column: {percent(max(shares))} of tokens"
        cells = [spread(row.kl, row.kl_ci95, number), *map(percent, above)]
        lines.append([name_cell(row), row_chart(scale, marks, tip, "tall"), *cells])
    headings: list[str | Cell] = [
        "site",
        axis(scale, marked("KL of a token, nats")),
        "KL [95 %]",
        "tokens above 0.1",
        "tokens above 1",
    ]
    joint = rows[-1].architecture == "joint"
    text = f"Share of tokens by KL; all rows have one height, {percent(most)} of the tokens in a bin."
    return "Where the divergence is", table(headings, lines, last_is_joint=joint) + note(text)


def task_section(report: ReportData) -> Section:
    """Narrow tasks beside the full distribution: what share of each one's logit difference is left."""
    tasks = report.extras.get("tasks")
    if not tasks:
        return None
    ends = [end for one in tasks["tasks"] for end in (one["recovered"], *(one["recovered_ci95"] or ()))]
    scale = linear_scale([100.0, *(None if end is None else 100 * end for end in ends)])
    headings: list[str | Cell] = [
        "task",
        axis(scale, "% of the logit difference recovered"),
        "recovered [95 %]",
        "prompts",
    ]
    headings += ["clean logit difference", "spliced", "clean accuracy", "spliced accuracy"]
    lines: list[list[str | Cell]] = [
        [
            one["name"],
            _recovered_chart(scale, one, colour_of(report.all_sites)),
            spread(one["recovered"], one["recovered_ci95"]),
            str(one["prompts"]),
            number(one["clean"]),
            number(one["spliced"]),
            percent(one["clean_accuracy"]),
            percent(one["spliced_accuracy"]),
        ]
        for one in tasks["tasks"]
    ]
    return "Narrow tasks beside the full distribution", f"<p>{marked(tasks['reading'])}</p>" + table(headings, lines)


def _recovered_chart(scale: Scale, one: Mapping[str, Any], colour: str) -> Cell:
    ends = one["recovered_ci95"]
    share = None if one["recovered"] is None else 100 * one["recovered"]
    interval = (100 * ends[0], 100 * ends[1]) if ends else None
    marks = [interval_line(scale, interval, colour), point(scale, share, colour)]
    return row_chart(scale, marks, spread(one["recovered"], ends))
