"""The breadth of probes and SAEs as tables and a sentence, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saekernels.display.numbers import signed, with_interval
from saekernels.display.tables import text_table, wrapped
from saekernels.eval.report.reading import headed

SIDES = ("inside", "outside")
# Columns before those of the methods.
_SHARED = 2
_LEGEND = (
    "Figures are ΔCE, the cross-entropy of the spliced model minus that of the clean one, in nats per token; [95 %]: "
    "the bootstrap interval over documents."
)
COUNTS = "fitted on / measured on"


def breadth_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: one row per level, ΔCE inside and outside of each method."""
    methods = list(result["levels"][0]["methods"])
    headings = ["probes fitted on", COUNTS, *(f"{shown(method)} {side}" for method in methods for side in SIDES)]
    rows = []
    for level in result["levels"]:
        cells = [level["name"], _counts(level)]
        for method in methods:
            for side in SIDES:
                one = level["methods"][method][side]
                cells.append("-" if one is None else with_interval(one["delta_ce"], one["ci95"]))
        rows.append(cells)
    return headings, rows


def shown(method: str) -> str:
    """A method as tables and plots name it: "rank 8", "SAE"."""
    return "SAE" if method == "sae" else method


def _counts(level: Mapping[str, Any]) -> str:
    """Positions fitted on and predictions measured inside, which results of before have with the figures alone."""
    measured = level["methods"]["sae"]["inside"]
    return f"{level['fitted_on']:,} / {measured['tokens'] if measured else 0:,}"


def transfer_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: domain fitted on x domain measured on, then the SAE."""
    transfer = result["transfer"]
    headings = [f"{transfer['method']} fitted on", *transfer["measured_on"]]
    rows = [
        [source, *map(signed, row)] for source, row in zip(transfer["fitted_on"], transfer["delta_ce"], strict=True)
    ]
    return headings, [*rows, ["(the SAE)", *map(signed, transfer["sae"])]]


def gap_sentence(result: Mapping[str, Any]) -> str:
    """The headline: the narrowest probe of the highest rank inside and outside, the SAE, and notes on the choice."""
    narrow, broad = result["levels"][0], result["levels"][-1]
    method = f"rank {result['ranks'][-1]}"
    probe, sae = narrow["methods"][method], broad["methods"]["sae"]["inside"]
    if probe["inside"] is None or probe["outside"] is None or sae is None:
        return "The narrowest slice has no prediction to measure."
    sentence = (
        f"At {result['site']}, a {method} probe fitted on {narrow['name']} costs "
        f"{signed(probe['inside']['delta_ce'])} nats per token inside that slice and "
        f"{signed(probe['outside']['delta_ce'])} outside of it (extrapolation gap "
        f"{signed(probe['extrapolation_gap'])}); "
        f"fitted on everything it costs {signed(broad['methods'][method]['inside']['delta_ce'])}, the SAE "
        f"{signed(sae['delta_ce'])}. The narrow probe is fitted on {narrow['fitted_on']:,} positions and measured on "
        f"{probe['inside']['tokens']:,} predictions."
    )
    return " ".join([sentence, *result.get("notes", ())])


def print_breadth(result: Mapping[str, Any]) -> str:
    """The sentence, a table per method and the one of domains, for a terminal."""
    headings, rows = breadth_rows(result)
    parts = [wrapped(gap_sentence(result)) + "\n"]
    for start in range(_SHARED, len(headings), len(SIDES)):
        kept = [*range(_SHARED), *range(start, start + len(SIDES))]
        cells = [[row[column] for column in kept] for row in rows]
        parts.append(text_table(headed([headings[column] for column in kept], cells), cells))
    headings, rows = transfer_rows(result)
    parts.append(text_table(headings, rows, after=_LEGEND))
    return "\n".join(parts)
