"""A report's figures on matplotlib's axes, for its page and for those who draw their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from saekernels.display.charts import BLUE, GREY, ORANGE, Dots, draw_curves, draw_dots, require_matplotlib
from saekernels.display.numbers import short_site
from saekernels.errors import InputError
from saekernels.eval.report.data import DomainFigures, ReportData
from saekernels.eval.report.reading import label, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Name, what it is, colour, shape.
BASELINES = {
    "random": ("random error", "an error of the SAE's norm in a random direction", "#4c9f70", "triangle"),
    "pca": ("PCA probe", "a probe of the SAE's rank: the first principal components", "#b05fa8", "circle"),
    "mean": ("the mean", "the mean over all touched positions in place of the site", "#c2504c", "square"),
    "zero": ("zeros", "zeros in place of the site", GREY, "cross"),
}
_MARKERS = {"triangle": "^", "circle": "o", "square": "s", "cross": "x"}


def plot(report: ReportData, by: str, ax: Axes | None) -> Axes:
    """What `Report.plot` says."""
    require_matplotlib("a plot")
    strata: dict[str, Mapping[str, DomainFigures]] = {"domain": report.all_sites.domains, **report.all_sites.strata}
    known = ["site", *(["cumulative"] if report.cumulative else []), *(name for name in strata if strata[name])]
    if by not in known:
        raise InputError(f"by: got {by!r:.80}, need one of {', '.join(known)}")
    axes = _new_axes(len(strata.get(by, rows_of(report)))) if ax is None else ax
    if by == "site":
        _draw_sites(report, axes)
    elif by == "cumulative":
        draw_cumulative(report, axes)
    else:
        _draw_strata(report, strata[by], axes)
    return axes


def _new_axes(rows: int) -> Axes:
    """Of a figure that pyplot knows, so that a notebook shows it."""
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(7.0, 1.6 + 0.3 * max(rows, 5)), layout="constrained")[1]


def _draw_sites(report: ReportData, axes: Axes) -> None:
    """Every SAE and all together, beside the baselines; these are orders of magnitude apart."""
    rows = rows_of(report)
    kinds = [kind for kind in BASELINES if kind in report.all_sites.baselines]
    own = [(row.delta_ce.nats, row.delta_ce.ci95) for row in rows]
    dots = {"the SAE": Dots(own, BLUE, "D")}
    for kind in kinds:
        name, _, colour, shape = BASELINES[kind]
        found = [row.baselines.get(kind) for row in rows]
        values = [(one.delta_ce, one.delta_ce_ci95) if one else (None, None) for one in found]
        dots[name] = Dots(values, colour, _MARKERS[shape])
    draw_dots(axes, [label(row) for row in rows], dots, "ΔCE, nats per token")
    shown = [x for one in dots.values() for value, ends in one.values for x in (value, *(ends or ())) if x]
    if kinds and shown:
        axes.set_xscale("symlog", linthresh=min(map(abs, shown)))
        if min(shown) > 0:
            axes.set_xlim(left=0)


def _draw_strata(report: ReportData, parts: Mapping[str, DomainFigures], axes: Axes) -> None:
    """All SAEs together, or the only one, in every part of the text that has tokens."""
    parts = {name: part for name, part in parts.items() if part.tokens}
    several = len(report.sites) > 1
    values = [(part.delta_ce.nats, part.delta_ce.ci95) for part in parts.values()]
    name = "all SAEs together" if several else "the SAE"
    draw_dots(axes, list(parts), {name: Dots(values, ORANGE if several else BLUE, "D")}, "ΔCE, nats per token")


def draw_cumulative(report: ReportData, axes: Axes) -> None:
    """ΔCE of the first l sites together with its interval, beside the sum of each alone."""
    steps = report.cumulative
    lines = {"spliced together": [one.delta_ce.nats for one in steps], "sum of each alone": summed_alone(report)}
    draw_curves(
        axes,
        [short_site(one.site) for one in steps],
        lines,
        "ΔCE, nats per token",
        "all sites up to and with",
        bands={"spliced together": [one.delta_ce.ci95 for one in steps]},
        colours={"spliced together": ORANGE, "sum of each alone": BLUE},
    )


def summed_alone(report: ReportData) -> list[float | None]:
    """At each step of `cumulative`, the sum of what the sites up to it cost alone; None from a missing figure on."""
    alone = {row.site: row.delta_ce.nats for row in report.sites}
    summed: list[float | None] = []
    total: float | None = 0.0
    for one in report.cumulative:
        step = alone.get(one.site)
        total = None if total is None or step is None else total + step
        summed.append(total)
    return summed
