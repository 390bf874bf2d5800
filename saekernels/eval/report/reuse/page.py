"""Reuse as sections of a page, with its curves, and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saekernels.display.charts import BLUE, GREY, ORANGE, curves
from saekernels.display.html import Cell, document
from saekernels.display.numbers import signed
from saekernels.eval.report.abbreviations import marked, note, table
from saekernels.eval.report.reuse.text import (
    CURVE,
    LINKS,
    SHARING,
    SLICES,
    curve_rows,
    domain_rows,
    facts,
    link_rows,
    matrix_rows,
    middle,
    names_of,
    reuse_sentence,
    rising,
    sharing_rows,
    shown_list,
    slice_rows,
)

Section = tuple[str, str]
_GREEN = "#4c9f70"


def reuse_parts(result: Mapping[str, Any]) -> list[Section]:
    """Sections (heading, HTML)."""
    row, name = middle(result), names_of(result)[middle(result)["site"]]
    sections = [
        ("What domains share", table(*sharing_rows(result)) + note(SHARING)),
        (f"From one domain to all, {name}", _side(_rarefaction(row), table(*domain_rows(row))) + note(rising(row))),
    ]
    if row["slices"]:
        sections.append((f"From narrow to broad, {name}", _side(_narrow(row), table(*slice_rows(row))) + note(SLICES)))
    if result["links"]:
        sections.append(("Links between layers", table(*link_rows(result)) + note(LINKS)))
    if row["transfer"]:
        cost = _side(_curve(row), table(*curve_rows(result)))
        told = f"ΔCE with {shown_list(row)['latents']:,} latents of one domain, {name}"
        sections += [("What a domain's latents are worth", cost + note(CURVE)), (told, _matrix(row))]
    return sections


def reuse_page(result: Mapping[str, Any]) -> str:
    """One self-contained HTML page."""
    title = f"Reuse of latents in {result['model']}"
    notes = result["notes"]
    return document(
        title, reuse_sentence(result), reuse_parts(result), result, facts=facts(result), notes=notes, mark=marked
    )


def _side(chart: str, beside: str) -> str:
    return f'<div class="side"><div class="chart">{chart}</div>{beside}</div>'


def _lines(
    figures: Mapping[str, Sequence[Mapping[str, Any] | None]], labels: Sequence[str], ylabel: str, xlabel: str,
    colours: Mapping[str, str],
) -> str:  # fmt: skip
    """Curves with their intervals, of figures by line."""
    values = {name: [None if one is None else one["value"] for one in line] for name, line in figures.items()}
    bands = {name: [None if one is None else one["ci95"] for one in line] for name, line in figures.items()}
    return curves(labels, values, ylabel, xlabel, bands=bands, colours=colours)


def _rarefaction(row: Mapping[str, Any]) -> str:
    found = row["effect"]["rarefaction"]
    figures = {told: [one[key] for one in found] for told, key in
               (("carry 90 %", "carriers"), ("in effect", "effective"))}  # fmt: skip
    labels = [str(one["domains"]) for one in found]
    return _lines(figures, labels, "latents", "domains", {"carry 90 %": ORANGE, "in effect": BLUE})


def _narrow(row: Mapping[str, Any]) -> str:
    found = row["slices"]["effect"]
    figures = {"slice": [one["effective"] for one in found],
               "at random": [one.get("random_effective") for one in found]}  # fmt: skip
    labels = [one["level"] for one in found]
    return _lines(figures, labels, "latents in effect", "", {"slice": ORANGE, "at random": GREY})


def _curve(row: Mapping[str, Any]) -> str:
    found = row["transfer"]["curve"]
    figures = {key: [one[key] for one in found] for key in ("home", "away", "random", "union")}
    colours = {"home": BLUE, "away": ORANGE, "random": GREY, "union": _GREEN}
    return _lines(figures, [f"{one['latents']:,}" for one in found], "ΔCE, nats per token", "latents allowed", colours)


def _matrix(row: Mapping[str, Any]) -> str:
    """The table of domains, darker where it costs more."""
    headings, rows = matrix_rows(row)
    cells = [[figure["value"] for figure in line] for line in shown_list(row)["matrix"]]
    most = max((value for line in cells for value in line if value is not None), default=0.0)
    shaded: list[list[str | Cell]] = [list(line) for line in rows]
    for at, line in enumerate(cells):
        for column, value in enumerate(line):
            shade = 0.0 if value is None or most <= 0 else max(0.0, value / most)
            shaded[at][1 + column] = Cell(signed(value), kind="joint", shade=shade)
    return table(headings, shaded)
