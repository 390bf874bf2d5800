"""A page as its reader sees it: tables by section, cell by cell, and the attributes of what is in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

Attributes = dict[str, str | None]
_HEADINGS, _CELLS = ("h1", "h2"), ("th", "td")


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
