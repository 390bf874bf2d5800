"""A training as one HTML page of curves, each beside its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saekernels.display.charts import ORANGE, curves
from saekernels.display.html import document
from saekernels.display.numbers import counted
from saekernels.eval.report.abbreviations import marked, note, table
from saekernels.eval.report.over.series import JOINT, Chart, Figure, charts, labels


def page(result: Mapping[str, Any]) -> str:
    """One self-contained HTML page. Needs matplotlib."""
    rows, text = result["checkpoints"], result["text"]
    at, axis = labels(result), result["axis"]
    headline = (
        f"From {rows[0]['name']} to {rows[-1]['name']}, on the same {counted(text['tokens'], 'token')} of "
        f"{counted(text['documents'], 'document')}; checkpoints stand at equal distances."
    )
    sections = [(chart.heading, _section(chart, at, axis)) for chart in charts(result)]
    return document("Over training", headline, sections, result, notes=result["notes"], mark=marked)


def _section(chart: Chart, at: Sequence[str], axis: str) -> str:
    values = {name: [None if one is None else one["value"] for one in line] for name, line in chart.lines.items()}
    bands = {name: [_band(one) for one in line] for name, line in chart.lines.items()}
    ends = chart.dashed

    def is_dashed(name: str) -> bool:
        return bool(ends) and name.endswith(ends)

    cells = [[label, *chart.cells(number)] for number, label in enumerate(at)]
    beside = table([axis, *chart.lines], cells)
    if all(value is None for line in values.values() for value in line):
        return beside + note(chart.meaning)
    drawn = curves(at, values, chart.ylabel, axis, dashed=is_dashed, bands=bands, colours={JOINT: ORANGE})
    return f'<div class="side"><div class="chart">{drawn}</div>{beside}</div>' + note(chart.meaning)


def _band(figure: Figure) -> tuple[float, float] | None:
    return figure["ci95"] if figure is not None and figure["value"] is not None else None
