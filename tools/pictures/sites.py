"""What splicing costs at each of many sites: alone, all up to there, and all together, on a logarithmic scale."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import Any

from drawing import Drawing, Theme

WIDTH, HEIGHT = 830, 430
LINES = {"pca": "PCA of the same rank (green)", "mean": "the mean activation (grey)"}
LEFT, RIGHT, TOP, BOTTOM = 62, 700, 96, 366


class Scale:
    """Nats to pixels, by their logarithm."""

    def __init__(self, values: list[float]) -> None:
        positive = [value for value in values if value > 0]
        self.low, self.high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))

    def __call__(self, nats: float) -> float:
        place = (math.log10(max(nats, 10.0**self.low)) - self.low) / (self.high - self.low)
        return BOTTOM - place * (BOTTOM - TOP)

    def ticks(self) -> Iterator[float]:
        """Powers of ten."""
        yield from (10.0**power for power in range(self.low, self.high + 1))


def sites(report: dict[str, Any], theme: Theme, beside: dict[str, Any] | None = None) -> str:
    """The picture of a report (schema 1) of many sites with the cumulative splices; `beside`: one with baselines."""
    drawing = Drawing(WIDTH, HEIGHT, theme)
    rows, curve, together = report["sites"], report["cumulative"], report["all_sites"]
    alone = [row["delta_ce"]["nats"] for row in rows]
    total = [step["delta_ce"]["nats"] for step in curve]
    lines = _baselines(beside, [row["site"] for row in rows]) if beside else {}
    scale = Scale([*alone, *total, *itertools.chain.from_iterable(lines.values())])
    _frame(drawing, scale, len(rows))
    for values, colour in zip(lines.values(), (theme.green, theme.grey), strict=False):
        _series(drawing, scale, values, colour, width=1.5)
    _series(drawing, scale, total, theme.orange)
    for place, row in enumerate(rows):
        x, cost = _x(place, len(rows)), row["delta_ce"]
        low, high = cost["ci95"]
        drawing.line(x, scale(low), x, scale(high), theme.ink)
        drawing.circle(x, scale(cost["nats"]), 3.5, theme.blue)
    joint = together["delta_ce"]["nats"]
    end = scale(joint)
    drawing.circle(_x(len(rows) - 1, len(rows)), end, 4.5, theme.orange)
    drawing.text(RIGHT + 12, end - 4, f"{joint:+.2f} nats", size=15, bold=True, colour=theme.orange)
    drawing.text(RIGHT + 12, end + 13, f"all {len(rows)} together", colour=theme.orange)
    middle = statistics.median(alone)
    last = scale(alone[-1])
    drawing.text(RIGHT + 12, max(last + 4, end + 34), "each alone", colour=theme.blue)
    _words(drawing, report, middle, list(lines))
    title = f"Each of {len(rows)} layers alone costs {middle:+.3f} nats in the median, all together {joint:+.2f}"
    listed = (f"{_name(row)}: {row['delta_ce']['nats']:+.4f} nats" for row in rows)
    return drawing.render(title, "; ".join([*listed, f"all together: {joint:+.4f} nats"]))


def _x(place: int, count: int) -> float:
    return LEFT + 14 + place * (RIGHT - LEFT - 28) / max(1, count - 1)


def _frame(drawing: Drawing, scale: Scale, count: int) -> None:
    theme = drawing.theme
    for tick in scale.ticks():
        drawing.line(LEFT, scale(tick), RIGHT, scale(tick), theme.line)
        drawing.text(LEFT - 8, scale(tick) + 4, f"{tick:g}", colour=theme.muted, anchor="end")
    for place in range(0, count, 5 if count > 12 else 1):
        drawing.text(_x(place, count), BOTTOM + 19, str(place), colour=theme.muted, anchor="middle")
    drawing.text((LEFT + RIGHT) / 2, BOTTOM + 38, "layer", colour=theme.muted, anchor="middle")


def _baselines(beside: dict[str, Any], names: list[str]) -> dict[str, list[float]]:
    """What PCA and the mean cost alone at each of these sites, as far as the report has them at all of these."""
    found = {row["site"]: row["baselines"] for row in beside["sites"]}
    if set(found) < set(names):
        return {}
    kinds = [kind for kind in LINES if all(kind in found[name] for name in names)]
    return {kind: [found[name][kind]["delta_ce"] for name in names] for kind in kinds}


def _series(drawing: Drawing, scale: Scale, values: list[float], colour: str, width: float = 2.5) -> None:
    points = [f"{_x(place, len(values)):.1f} {scale(value):.1f}" for place, value in enumerate(values)]
    if points:
        drawing.path("M" + " L".join(points), colour, width=width)


def _words(drawing: Drawing, report: dict[str, Any], middle: float, kinds: list[str]) -> None:
    theme = drawing.theme
    drawing.text(16, 32, "ΔCE: what splicing an SAE costs, nats per token", size=17, bold=True)
    line = f"alone (blue, 95 % intervals; {middle:+.3f} in the median), and with all layers before it (orange)"
    drawing.text(16, 54, line, colour=theme.muted)
    if kinds:
        beside = ", ".join(LINES[kind] for kind in kinds)
        drawing.text(16, 74, f"each alone in the SAE's place: {beside}", colour=theme.muted)
    source = f"{report['model']}, {report['tokens']:,} tokens of {report['documents']} held-out documents"
    drawing.text(16, HEIGHT - 8, source, colour=theme.muted)


def _name(row: dict[str, Any]) -> str:
    return f"layer {row['site'].rpartition('.')[2]}"
