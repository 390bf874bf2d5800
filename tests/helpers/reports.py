"""Small reports with chosen figures, and a page of them as its reader sees it: cell by cell."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from saekernels.eval import Report
from saekernels.eval.report.data import (
    BaselineFigures,
    CrossEntropy,
    CumulativeFigures,
    DeltaCE,
    DomainFigures,
    LossRecovered,
    SiteFigures,
    Worst,
)
from saekernels.eval.sums.accumulate import KL_BINS

SHARES = {"layers.0": (0.9, [0.8, 1.0]), "layers.1": (0.5, None), "all": (0.25, [0.2, 0.35])}
Attributes = dict[str, str | None]
_CELLS = ("th", "td")


def site(name: str, delta: float | None = 0.25, architecture: str = "topk") -> SiteFigures:
    known = delta is not None
    ce = CrossEntropy(3.0, 3.0 + delta if known else None, 9.0, 7.0)
    change = DeltaCE(delta, (0.2, 0.3) if known else None, 0.1, (0.08, 0.12))
    recovered = LossRecovered(0.96, None, (0.95, 0.97), None)
    domains = {
        label: DomainFigures(500, 4, ce, dataclasses.replace(change, nats=share), 0.1, 0.8, recovered)
        for label, share in (("code", 0.1), ("<law> & [red]", 0.4))
    }
    return SiteFigures(
        name, architecture, 64, 8.0, 0.1, 0.0, ce, change, 0.2, (0.1, 0.3), 0.8, None, recovered, domains
    )


def report(**changes: Any) -> Report:
    rows = [site("model.layers.0", 0.05), site("model.layers.1")]
    plain: dict[str, Any] = {
        "model": "a <b> model",
        "tokens": 1000,
        "documents": 8,
        "nbytes": 4000,
        "sites": rows,
        "all_sites": site("all", 0.5, "joint"),
        "context": 24,
        "prefix": [0],
        "mask": "the mask",
        "seed": 0,
        "bootstrap": 100,
        "notes": ["a note with [brackets]"],
        "run": {"device": "cpu"},
        **changes,
    }
    return Report(**plain)


def baseline(delta: float | None) -> BaselineFigures:
    return BaselineFigures(4.0, delta, None, None, None)


def measured(row: SiteFigures, random: float) -> SiteFigures:
    """With baselines, strata and a histogram of KL: 30 tokens in bin 20 (under 0.1 nat), 10 in bin 27 (0.3 to 0.6)."""
    counts = [0] * KL_BINS
    counts[20], counts[27] = 30, 10
    baselines = {"random": baseline(random), "zero": baseline(10.0)}
    early, late = row.domains["code"], dataclasses.replace(row.domains["code"], tokens=0)
    strata = {"position": {"1-3": early, "4-15": row.domains["<law> & [red]"], "none": late}}
    return dataclasses.replace(row, baselines=baselines, strata=strata, kl_histogram=counts)


def full(**changes: Any) -> Report:
    """Two sites and all parts; ΔCE 0.05, 0.25 and 0.5."""
    rows = [measured(site("layers.0", 0.05), 0.1), measured(site("layers.1"), 0.1)]
    joint = dataclasses.replace(measured(site("all", 0.5, "joint"), 0.25), worst=Worst("position", "4-15", 0.4))
    targets = {
        name: {"outside": "", "parameters": 2e6 * share, "parameters_ci95": None, "share": share, "share_ci95": ends}
        for name, (share, ends) in SHARES.items()
    }
    task = {"name": "ioi", "prompts": 4, "clean": 2.0, "spliced": 1.0, "clean_accuracy": 1.0, "spliced_accuracy": 0.5}
    extras = {
        "effective_compute": {"targets": targets, "members": [{}, {}]},
        "tasks": {"reading": "Of 1 task.", "tasks": [{**task, "recovered": 0.5, "recovered_ci95": [0.4, 0.7]}]},
    }
    steps = [CumulativeFigures(row.site, n, 3.0, row.delta_ce, 0.1) for n, row in enumerate(rows, 1)]
    return report(**{"sites": rows, "all_sites": joint, "extras": extras, "cumulative": steps, **changes})


@dataclass
class Cell:
    attributes: Attributes
    text: str = ""
    inside: list[tuple[str, Attributes]] = field(default_factory=list)

    def marks(self, tag: str) -> list[Attributes]:
        """The elements of one kind in the cell, the lines of the scale's grid left out."""
        return [a for name, a in self.inside if name == tag and a.get("class") != "grid"]


class Page(HTMLParser):
    """tables: section id -> rows of cells, the heading row first; elements: all of them, in order; scripts: texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[Cell]]] = {}
        self.elements: list[tuple[str, Attributes]] = []
        self.scripts: list[str] = []
        self.section = ""
        self.text = ""
        self._cell: Cell | None = None
        self._in_script = self._in_style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "section":
            self.section = attributes["id"] or ""
        elif tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        elif tag in _CELLS:
            self._cell = Cell(attributes)
            self.tables[self.section][-1].append(self._cell)
        elif self._cell is not None:
            self._cell.inside.append((tag, attributes))
        if tag == "script":
            self.scripts.append("")
        self._in_script = tag == "script"
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        if tag in _CELLS:
            self._cell = None
        self._in_script = self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        elif not self._in_style:
            self.text += data
        if self._cell is not None:
            self._cell.text += data

    def column(self, section: str, heading: str) -> list[Cell]:
        """The cells under the heading that begins so."""
        head, *rows = self.tables[section]
        (at,) = [number for number, cell in enumerate(head) if cell.text.startswith(heading)]
        return [row[at] for row in rows]

    def charts(self, section: str) -> list[Cell]:
        """The chart's piece of every row."""
        return [
            cell for row in self.tables[section][1:] for cell in row if "plot" in (cell.attributes.get("class") or "")
        ]
