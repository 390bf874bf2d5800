"""What a notebook shows of an object: its name and facts, in the notebook's own fonts and colours, light or dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_LEFT = ' style="text-align:left"'
# A name from a file may be of any length.
_MOST_CHARACTERS = 300


def card(title: str, facts: Mapping[str, object], below: str = "") -> str:
    """HTML without styles of a page, scripts or anything to load; title and facts are plain text, below ready HTML.

    Facts that are None are left out.
    """
    rows = "".join(
        f"<tr><th{_LEFT}>{escape(name)}</th><td{_LEFT}>{escape(_cut(str(fact)))}</td></tr>"
        for name, fact in facts.items()
        if fact is not None
    )
    return f"<div><strong>{escape(title)}</strong><table><tbody>{rows}</tbody></table>{below}</div>"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"
