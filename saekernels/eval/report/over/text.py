"""A training as tables, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saekernels.display.tables import text_table, wrapped
from saekernels.eval.report.over.series import charts, labels
from saekernels.eval.report.reading import headed


def as_text(result: Mapping[str, Any]) -> str:
    """A table for each question, a line for each checkpoint."""
    parts = []
    for chart in charts(result):
        rows = [[label, *chart.cells(at)] for at, label in enumerate(labels(result))]
        headings = headed([result["axis"], *chart.lines], rows)
        parts.append(text_table(headings, rows, before=f"{chart.heading}: {chart.ylabel}", after=chart.meaning))
    notes = [wrapped(f"Note: {note}") for note in result["notes"]]
    return "\n".join([*parts, *notes]) + ("\n" if notes else "")
