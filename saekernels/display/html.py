"""HTML of the pages: one style for light and dark, a document, a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --paper: #ffffff; --soft: #5d6470; --line: #d9dde3; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #15181d; --soft: #9aa3af; --line: #343a43; --card: #1c2027; } }
body { margin: 2rem auto; max-width: 74rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.soft { color: var(--soft); } .reading { font-size: 1.1rem; border-left: 4px solid #e08a2e; padding-left: 1rem; }
.wide { overflow-x: auto; } .side { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: center; }
.side > * { flex: 1 1 20rem; } pre { background: var(--card); padding: 0.8rem 1rem; overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 7rem; }
.ci { display: block; color: var(--soft); font-size: 0.9em; font-weight: normal; } tr.joint { font-weight: 600; }
svg { max-width: 100%; height: auto; } svg text { font-family: system-ui, sans-serif !important; }
"""


def document(title: str, headline: str, sections: Sequence[tuple[str, str]], facts: str = "", before: str = "") -> str:
    """A page: title, small facts, one sentence, then sections of (heading, HTML)."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(facts)}</p>' if facts else "",
        f'<p class="reading">{escape(headline)}</p>',
        before,
        *(f"<h2>{escape(heading)}</h2>\n{body}" for heading, body in sections),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], last_is_joint: bool = False) -> str:
    """A table whose first column is text and whose others are numbers."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = []
    for number_, row in enumerate(rows, 1):
        mark = ' class="joint"' if last_is_joint and number_ == len(rows) else ""
        lines.append(f"<tr{mark}>" + "".join(map(_cell, row)) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(text: str) -> str:
    """An interval, "value [low, high]", stands below its value: tables stay narrow."""
    value, bracket, rest = text.partition(" [")
    if bracket and rest.endswith("]"):
        return f'<td>{escape(value)} <span class="ci">[{escape(rest)}</span></td>'
    return f"<td>{escape(text)}</td>"
