"""The plots of the HTML page, as SVG text that takes its text colour and fonts from the page."""

from __future__ import annotations

from typing import Any

from saekernels.display.charts import BLUE, GREY, INK, ORANGE, plain, svg
from saekernels.display.numbers import Interval
from saekernels.eval.report.data import ReportData
from saekernels.eval.report.reading import label, rows_of


def delta_plot(report: ReportData) -> str:
    """ΔCE of each site and of all together, with intervals."""
    rows = rows_of(report)
    labels = [label(row) for row in rows]

    def draw(axes: Any) -> None:
        for at, row in enumerate(rows):
            _bar(axes, at, row.delta_ce.nats, row.delta_ce.ci95, ORANGE if row.architecture == "joint" else BLUE)
        axes.set_xlabel("ΔCE, nats per token")

    return _svg(labels, draw)


def ablation_plot(report: ReportData) -> str:
    """The loss of each run on one scale: where the splice lies between the clean model and the ablations."""
    rows = rows_of(report)
    kinds = (("clean", "o", GREY), ("spliced", "D", ORANGE), ("mean", "s", BLUE), ("zero", "x", INK))

    def draw(axes: Any) -> None:
        for kind, marker, colour in kinds:
            points = [(getattr(row.ce, kind), at) for at, row in enumerate(rows) if getattr(row.ce, kind) is not None]
            if points:
                axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=kind, zorder=3)
        axes.set_xlabel("cross-entropy, nats per token")
        axes.grid(axis="y", linewidth=0.4, alpha=0.4)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.5 / (1 + len(rows))), ncols=4)

    return _svg([label(row) for row in rows], draw)


def domain_plot(report: ReportData) -> str:
    """ΔCE of all sites together by domain, worst first, with intervals."""
    domains = report.all_sites.domains
    names = sorted(domains, key=lambda name: -(domains[name].delta_ce.nats or 0.0))

    def draw(axes: Any) -> None:
        for at, name in enumerate(names):
            _bar(axes, at, domains[name].delta_ce.nats, domains[name].delta_ce.ci95, ORANGE)
        if report.all_sites.delta_ce.nats is not None:
            axes.axvline(report.all_sites.delta_ce.nats, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("ΔCE with all sites spliced, nats per token (dotted: all domains)")

    return _svg(names, draw)


def _bar(axes: Any, at: int, value: float | None, interval: Interval | None, colour: str) -> None:
    if value is None:
        return
    axes.barh(at, value, color=colour, height=0.6)
    if interval is not None:
        axes.plot(interval, [at, at], color=INK, linewidth=1.2)


def _svg(labels: list[str], draw: Any) -> str:
    def rows(axes: Any) -> None:
        draw(axes)
        axes.set_yticks(range(len(labels)), [plain(label) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.axvline(0, color=INK, linewidth=0.6) if axes.get_xlim()[0] < 0 else None

    return svg((7.2, 1.1 + 0.34 * len(labels)), rows)
