"""The breadth of probes and SAEs as a plot, a section, and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saekernels.display.charts import BLUE, curves
from saekernels.display.html import document
from saekernels.eval.report.abbreviations import marked, note, table
from saekernels.eval.report.breadth_text import SIDES, breadth_rows, gap_sentence, shown, transfer_rows


def breadth_plot(result: Mapping[str, Any]) -> str:
    """ΔCE against breadth, inside and outside, as SVG."""
    labels = [level["level"] for level in result["levels"]]
    lines = {}
    for method in result["levels"][0]["methods"]:
        for side in SIDES:
            values = [level["methods"][method][side] for level in result["levels"]]
            lines[f"{shown(method)} {side}"] = [None if one is None else one["delta_ce"] for one in values]
    return curves(labels, lines, "ΔCE, nats per token", "fitted on", dashed=_is_outside, colours={"SAE": BLUE})


def _is_outside(line: str) -> bool:
    return line.endswith("outside")


def breadth_parts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Sections (heading, HTML): the plot with its table, and the matrix of domains."""
    text = (
        "Inside: spliced at the positions of the slice alone, ΔCE over the predictions made there; outside: the same "
        "of all other positions. Probes are fitted on half of the documents and measured on the other half. The SAE is "
        "the same in every row; it was not fitted on the slice."
    )
    beside = table(*breadth_rows(result))
    plot = f'<div class="side"><div class="chart">{breadth_plot(result)}</div>{beside}</div>'
    return [
        ("ΔCE against breadth", plot + note(text)),
        ("From domain to domain", table(*transfer_rows(result))),
    ]


def breadth_page(result: Mapping[str, Any]) -> str:
    """One self-contained HTML page."""
    title = f"Breadth of probes and SAE at {result['site']} of {result['model']}"
    return document(title, gap_sentence(result), breadth_parts(result), result, mark=marked)
