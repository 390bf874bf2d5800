"""The breadth of probes and SAEs as tables for a terminal, and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .charts import curves
from .errors import missing_extra
from .markup import document, html_table
from .table import signed, with_interval

_SIDES = ("inside", "outside")


def breadth_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: one row per level, ΔCE inside and outside of each method."""
    methods = list(result["levels"][0]["methods"])
    headings = ["probes fitted on", "positions", *(f"{method} {side}" for method in methods for side in _SIDES)]
    rows = []
    for level in result["levels"]:
        cells = [level["name"], f"{level['fitted_on']:,}"]
        for method in methods:
            for side in _SIDES:
                one = level["methods"][method][side]
                cells.append("-" if one is None else with_interval(one["delta_ce"], one["ci95"]))
        rows.append(cells)
    return headings, rows


def transfer_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: domain fitted on x domain measured on, then the SAE."""
    transfer = result["transfer"]
    headings = [f"{transfer['method']} fitted on", *transfer["measured_on"]]
    rows = [
        [source, *map(signed, row)] for source, row in zip(transfer["fitted_on"], transfer["delta_ce"], strict=True)
    ]
    return headings, [*rows, ["(the SAE)", *map(signed, transfer["sae"])]]


def gap_sentence(result: Mapping[str, Any]) -> str:
    """The headline: the narrowest probe of the highest rank inside and outside, and the SAE."""
    narrow, broad = result["levels"][0], result["levels"][-1]
    method = f"rank {result['ranks'][-1]}"
    probe, sae = narrow["methods"][method], broad["methods"]["sae"]["inside"]
    if probe["inside"] is None or probe["outside"] is None or sae is None:
        return "The narrowest slice has no prediction to measure."
    return (
        f"At {result['site']}, a {method} probe fitted on {narrow['name']} costs "
        f"{signed(probe['inside']['delta_ce'])} nats per token inside that slice and "
        f"{signed(probe['outside']['delta_ce'])} outside of it (extrapolation gap "
        f"{signed(probe['extrapolation_gap'])}); "
        f"fitted on everything it costs {signed(broad['methods'][method]['inside']['delta_ce'])}, the SAE "
        f"{signed(sae['delta_ce'])}."
    )


def print_breadth(result: Mapping[str, Any]) -> str:
    """The tables and the sentence, for a terminal."""
    try:
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError as error:
        raise missing_extra("rich", "the table") from error
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    with console.capture() as capture:
        for headings, rows in (_narrow(result), transfer_rows(result)):
            table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
            for index, heading in enumerate(headings):
                table.add_column(escape(heading), justify="right" if index else "left", overflow="fold")
            for cells in rows:
                table.add_row(*map(escape, cells))
            console.print(table)
        console.print(escape(gap_sentence(result)), width=100)
    return capture.get()


def _narrow(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """As `breadth_rows`, with one column per method: inside / outside."""
    methods = list(result["levels"][0]["methods"])
    rows = []
    for level in result["levels"]:
        cells = [level["name"], f"{level['fitted_on']:,}"]
        for method in methods:
            pair = [level["methods"][method][side] for side in _SIDES]
            cells.append(" / ".join(signed(None if one is None else one["delta_ce"]) for one in pair))
        rows.append(cells)
    return ["ΔCE inside / outside; fitted on", "positions", *methods], rows


def breadth_plot(result: Mapping[str, Any]) -> str:
    """ΔCE against breadth, inside and outside, as SVG."""
    labels = [level["level"] for level in result["levels"]]
    lines = {}
    for method in result["levels"][0]["methods"]:
        for side in _SIDES:
            values = [level["methods"][method][side] for level in result["levels"]]
            lines[f"{method} {side}"] = [None if one is None else one["delta_ce"] for one in values]
    return curves(labels, lines, "ΔCE, nats per token", "fitted on", dashed=lambda name: name.endswith("outside"))


def breadth_page(result: Mapping[str, Any]) -> str:
    """One self-contained HTML page."""
    title = f"Breadth of probes and SAE at {result['site']} of {result['model']}"
    note = (
        "Inside: spliced at the positions of the slice alone, ΔCE over the predictions made there; outside: the same "
        "of all other positions. Probes are fitted on half of the documents and measured on the other half. The SAE is "
        "the same in every row; it was not fitted on the slice."
    )
    return document(
        title,
        gap_sentence(result),
        [
            ("ΔCE against breadth", breadth_plot(result) + html_table(*breadth_rows(result))),
            ("From domain to domain", html_table(*transfer_rows(result)) + f'<p class="soft">{note}</p>'),
        ],
    )
