"""Sections of the HTML page with one row per site: (heading, HTML), or None where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from saekernels.display.charts import BLUE, ORANGE, svg
from saekernels.display.html import Cell
from saekernels.display.numbers import Interval, number, percent, readable, short_site, signed, with_interval
from saekernels.display.rows import Scale, axis, bar, interval_line, legend, linear_scale, log_scale, point, row_chart
from saekernels.eval.report.abbreviations import marked, note, table
from saekernels.eval.report.data import BaselineFigures, DeltaCE, ReportData, SiteFigures
from saekernels.eval.report.figures import BASELINES, draw_cumulative, summed_alone
from saekernels.eval.report.reading import SITE_HEADINGS, label, rows_of, site_cells

Section = tuple[str, str] | None
_COST_HEADINGS = ("ΔCE nats [95 %]", "bits/byte", "KL", "top-1", "FVU", "L0", "dead")
_ABLATIONS = {"clean": ("currentColor", "circle")} | {kind: BASELINES[kind][2:] for kind in ("mean", "zero")}


def colour_of(row: SiteFigures) -> str:
    """Orange is all sites together, in every chart; a site alone is blue."""
    return ORANGE if row.architecture == "joint" else BLUE


def name_cell(row: SiteFigures) -> Cell:
    """The name of a row, short; hover shows the whole of it."""
    return Cell(escape(label(row)), "" if row.architecture == "joint" else row.site)


def spread(value: float | None, interval: Interval | None, show: Callable[[float | None], str] = percent) -> str:
    """ "94.3% [93.2%, 95.0%]"."""
    known = value is not None and interval is not None
    return show(value) + (f" [{show(interval[0])}, {show(interval[1])}]" if known and interval else "")


def delta_scale(parts: list[DeltaCE]) -> Scale:
    """A scale that holds every ΔCE and its interval."""
    return linear_scale(value for part in parts for value in (part.nats, *(part.ci95 or ())))


def delta_chart(scale: Scale, delta: DeltaCE, colour: str) -> Cell:
    """One row of a chart of ΔCE: a bar and its interval."""
    marks = [bar(scale, delta.nats, colour), interval_line(scale, delta.ci95)]
    return row_chart(scale, marks, f"ΔCE {with_interval(delta.nats, delta.ci95)} nats per token")


def cost_section(report: ReportData) -> Section:
    """ΔCE of each site and of all together, with the figures of the reconstruction."""
    rows = rows_of(report)
    scale = delta_scale([row.delta_ce for row in rows])
    lines: list[list[str | Cell]] = []
    for row in rows:
        cells = dict(zip(SITE_HEADINGS, site_cells(row), strict=True))
        chart = delta_chart(scale, row.delta_ce, colour_of(row))
        lines.append([name_cell(row), chart, *(cells[heading] for heading in _COST_HEADINGS)])
    headings: list[str | Cell] = ["site", axis(scale, marked("ΔCE, nats per token")), *_COST_HEADINGS]
    return "Cost of each splice", table(headings, lines, last_is_joint=len(rows) > 1)


def effective_section(report: ReportData) -> Section:
    """What each target is worth: its interval on the training compute of the largest model of a family."""
    found = report.extras.get("effective_compute")
    if not found:
        return None
    rows = [row for row in rows_of(report) if row.site in found["targets"]]
    scale = Scale(0, 100, (0, 25, 50, 75, 100))
    lines: list[list[str | Cell]] = [
        [name_cell(row), *_worth_cells(scale, found["targets"][row.site], colour_of(row))] for row in rows
    ]
    headings: list[str | Cell] = ["site", axis(scale, "% of the training compute"), "share [95 %]", "parameters [95 %]"]
    text = f"Interpolated in a family of {len(found['members'])} models measured on the same text."
    joint = bool(rows) and rows[-1].architecture == "joint"
    return "Effective compute", table(headings, lines, last_is_joint=joint) + note(text)


def _worth_cells(scale: Scale, one: Any, colour: str) -> list[str | Cell]:
    if one["outside"]:
        return [row_chart(scale, [], one["outside"]), Cell(escape(one["outside"]), kind="words"), "-"]
    share = spread(one["share"], one["share_ci95"])
    parameters = readable(one["parameters"])
    if one["parameters_ci95"]:
        parameters += " [{}, {}]".format(*map(readable, one["parameters_ci95"]))
    marks = []
    if one["share"] is not None:
        interval = one["share_ci95"] and (100 * one["share_ci95"][0], 100 * one["share_ci95"][1])
        marks = [interval_line(scale, interval, colour), point(scale, 100 * one["share"], colour)]
    return [row_chart(scale, marks, share), share, parameters]


def cumulative_section(report: ReportData) -> Section:
    """ΔCE of the first l sites together, beside the sum of each alone."""
    if not report.cumulative:
        return None
    labels = [short_site(one.site) for one in report.cumulative]
    summed = summed_alone(report)
    picture = svg((4.8, 2.8), lambda axes: draw_cumulative(report, axes))
    cells = [
        [name, with_interval(one.delta_ce.nats, one.delta_ce.ci95), signed(sum_), number(one.kl)]
        for name, one, sum_ in zip(labels, report.cumulative, summed, strict=True)
    ]
    beside = table(["up to and with", "ΔCE together [95 %]", "sum of each alone", "KL"], cells)
    return "Splicing layer after layer", f'<div class="side"><div class="chart">{picture}</div>{beside}</div>'


def random_ratio(row: SiteFigures) -> float | None:
    """ΔCE of the SAE over that of a random error of its norm; None unless both are positive."""
    random = row.baselines.get("random")
    sae, other = row.delta_ce.nats, random.delta_ce if random else None
    return None if sae is None or other is None or sae <= 0 or other <= 0 else sae / other


def baseline_section(report: ReportData) -> Section:
    """The distance of every baseline from the clean model beside that of the SAE, on a logarithmic scale."""
    kinds = [kind for kind in BASELINES if kind in report.all_sites.baselines]
    if not kinds:
        return None
    rows = rows_of(report)
    scale = log_scale(
        value for row in rows for value in (row.delta_ce.nats, *(row.baselines[kind].delta_ce for kind in kinds))
    )
    with_ratio = ["SAE ÷ random error"] if "random" in kinds else []
    lines: list[list[str | Cell]] = []
    for row in rows:
        cells: list[str | Cell] = [name_cell(row), _baseline_chart(scale, row, kinds)]
        cells += [with_interval(row.delta_ce.nats, row.delta_ce.ci95)]
        cells += [_distance(row.baselines[kind]) for kind in kinds]
        lines.append([*cells, *(number(random_ratio(row), 2) for _ in with_ratio)])
    named = [Cell(marked(BASELINES[kind][0]), BASELINES[kind][1]) for kind in kinds]
    headings: list[str | Cell] = ["site", axis(scale, marked("ΔCE, nats per token, logarithmic")), "the SAE"]
    headings += [*named, *with_ratio]
    probes = report.all_sites.baselines.get("pca")
    ranks = f" Ranks: {', '.join(map(str, dict.fromkeys(probes.rank)))}." if probes and probes.rank else ""
    text = (
        "Distance from the clean model; what does not raise the loss has no place on a logarithmic scale. "
        "Where the SAE costs more than a random error of the same norm (a ratio above 1), what it gets wrong is what "
        f"the model uses. Where a PCA probe of its rank costs less, sparsity has bought nothing in loss.{ranks}"
    )
    keys = {"the SAE": (BLUE, "diamond")} | ({"all SAEs together": (ORANGE, "diamond")} if len(rows) > 1 else {})
    keys |= {BASELINES[kind][0]: BASELINES[kind][2:] for kind in kinds}
    body = legend(keys) + table(headings, lines, last_is_joint=len(rows) > 1)
    return "Against honest baselines", body + note(text)


def _distance(one: BaselineFigures) -> str:
    return with_interval(one.delta_ce, one.delta_ce_ci95)


def _baseline_chart(scale: Scale, row: SiteFigures, kinds: list[str]) -> Cell:
    marks = [point(scale, row.baselines[kind].delta_ce, *BASELINES[kind][2:]) for kind in kinds]
    marks.append(point(scale, row.delta_ce.nats, colour_of(row), "diamond"))
    told = [f"{BASELINES[kind][0]} {signed(row.baselines[kind].delta_ce)}" for kind in kinds]
    return row_chart(scale, marks, "\n".join([f"the SAE {signed(row.delta_ce.nats)}", *told]))


def ablation_section(report: ReportData) -> Section:
    """The loss of each run on one scale: where the splice lies between the clean model and the ablations."""
    rows = rows_of(report)
    kinds = [kind for kind in _ABLATIONS if any(getattr(row.ce, kind) is not None for row in rows)]
    values = [getattr(row.ce, kind) for row in rows for kind in (*kinds, "spliced")]
    scale = linear_scale(values, with_zero=False)
    lines: list[list[str | Cell]] = []
    for row in rows:
        marks = [point(scale, getattr(row.ce, kind), *_ABLATIONS[kind]) for kind in kinds]
        marks.append(point(scale, row.ce.spliced, colour_of(row), "diamond"))
        tip = "\n".join(f"{kind} {number(getattr(row.ce, kind))}" for kind in ("clean", "spliced", *kinds[1:]))
        losses = [number(getattr(row.ce, kind)) for kind in ("clean", "spliced", "mean", "zero")]
        recovered = row.loss_recovered
        shares = [spread(recovered.mean, recovered.mean_ci95), spread(recovered.zero, recovered.zero_ci95)]
        lines.append([name_cell(row), row_chart(scale, marks, tip), *losses, *shares])
    headings: list[str | Cell] = [
        "site",
        axis(scale, marked("cross-entropy, nats per token")),
        "CE clean",
        "CE spliced",
        "CE mean",
        "CE zero",
    ]
    headings += ["rec. mean [95 %]", "rec. zero [95 %]"]
    keys = {"spliced": (BLUE, "diamond")} | ({"all spliced": (ORANGE, "diamond")} if len(rows) > 1 else {})
    keys |= {kind if kind == "clean" else f"{kind} ablation": _ABLATIONS[kind] for kind in kinds}
    body = legend(keys) + table(headings, lines, last_is_joint=len(rows) > 1)
    return "Between the clean model and ablation", body
