"""HTML of the pages: a document that needs no network and no script, its tiles, its tables."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Cell:
    """What a table holds beyond plain text.

    html: ready HTML, escaped by its maker; tip: plain text shown on hover; kind: a CSS class;
    shade: how much of the colour of `kind` the background has, 0 to 1.
    """

    html: str
    tip: str = ""
    kind: str = ""
    shade: float | None = None


@dataclass(frozen=True)
class Tile:
    """One figure on top of a page, as plain text: its name, the figure, and what stands below in small type."""

    name: str
    figure: str
    below: str = ""


def abbreviated(text: str, meanings: Mapping[str, str]) -> str:
    """Plain text as HTML in which every abbreviation that stands alone tells its meaning."""
    longest_first = sorted(meanings, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, longest_first))})(?!\w)")
    parts = pattern.split(text)
    return "".join(
        f'<abbr title="{escape(meanings[part])}">{escape(part)}</abbr>' if at % 2 else escape(part)
        for at, part in enumerate(parts)
    )


def anchor(heading: str) -> str:
    """The id of a section."""
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that ends no script element and opens no comment, whatever names it holds: it has no <, > or &."""
    text = json.dumps(data, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def document(
    title: str,
    headline: str,
    sections: Sequence[tuple[str, str]],
    data: Mapping[str, Any],
    *,
    facts: str = "",
    notes: Sequence[str] = (),
    tiles: Sequence[Tile] = (),
    mark: Callable[[str], str] = escape,
) -> str:
    """A page: title, small facts, tiles, one sentence, notes, links, then sections of (heading, HTML).

    data: JSON-ready, embedded for download. mark: plain text to HTML; the other texts are plain.
    """
    links = "".join(f'<a href="#{anchor(heading)}">{escape(heading)}</a>' for heading, _ in sections)
    parts = [
        f"<header>\n<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(facts)}</p>' if facts else "",
        f'<div class="tiles">{"".join(_tile(tile, mark) for tile in tiles)}</div>' if tiles else "",
        f'<p class="reading">{mark(headline)}</p>',
        *(f"<p><strong>Note:</strong> {mark(note)}</p>" for note in notes),
        f'<nav aria-label="Sections">{links}<a id="download" download="report.json" hidden>JSON</a></nav>\n</header>',
        *(
            f'<section id="{anchor(heading)}">\n<h2>{mark(heading)}</h2>\n{body}\n</section>'
            for heading, body in sections
        ),
        f'<script type="application/json" id="report">{embedded(data)}</script>',
        f"<script>{_asset('page.js')}</script>",
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>\n'
        f"<style>{_asset('page.css')}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy() -> str:
    """Nothing is loaded, and the one script that runs is the page's own, known by its digest."""
    digest = base64.b64encode(hashlib.sha256(_asset("page.js").encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def _tile(tile: Tile, mark: Callable[[str], str]) -> str:
    below = f'<div class="ci">{escape(tile.below)}</div>' if tile.below else ""
    figure = f'<div class="figure">{escape(tile.figure)}</div>'
    return f'<div class="tile"><div class="name">{mark(tile.name)}</div>{figure}{below}</div>'


def html_table(
    headings: Sequence[str | Cell], rows: Sequence[Sequence[str | Cell]], last_is_joint: bool = False
) -> str:
    """A table whose first column is text and whose others are numbers; a joint row stays last when it is sorted."""
    head = "".join(_cell(heading, "th", ' scope="col"') for heading in headings)
    lines = [_cell(first, "th", ' scope="row"') + "".join(_cell(cell, "td") for cell in rest) for first, *rest in rows]
    joint = f'<tfoot><tr class="joint">{lines.pop()}</tr></tfoot>' if last_is_joint else ""
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>{joint}</table></div>'


def _cell(cell: str | Cell, tag: str, more: str = "") -> str:
    """An interval, "value [low, high]", stands below its value: tables stay narrow."""
    if isinstance(cell, Cell):
        more += f' class="{cell.kind}"' if cell.kind else ""
        more += f' title="{escape(cell.tip)}"' if cell.tip else ""
        more += f' style="--shade:{cell.shade:.3f}"' if cell.shade is not None else ""
        return f"<{tag}{more}>{cell.html}</{tag}>"
    value, bracket, rest = cell.partition(" [")
    if bracket and rest.endswith("]"):
        return f'<{tag}{more}>{escape(value)} <span class="ci">[{escape(rest)}</span></{tag}>'
    return f"<{tag}{more}>{escape(cell)}</{tag}>"
