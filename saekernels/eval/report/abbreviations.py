"""What the abbreviations of the pages mean, and texts and tables that say so on hover."""

from __future__ import annotations

from collections.abc import Sequence

from saekernels.display.html import Cell, abbreviated, html_table
from saekernels.eval.report import reading

# A terminal has no room for what everyone knows.
ABBREVIATIONS = {**reading.ABBREVIATIONS, "SAE": "sparse autoencoder", "SAEs": "sparse autoencoders"}


def marked(text: str) -> str:
    """Plain text as HTML with its abbreviations explained."""
    return abbreviated(text.replace(" %", "\u00a0%"), ABBREVIATIONS)


def note(text: str) -> str:
    """A paragraph in soft type, of plain text."""
    return f'<p class="soft">{marked(text)}</p>'


def table(headings: Sequence[str | Cell], rows: Sequence[Sequence[str | Cell]], last_is_joint: bool = False) -> str:
    """As `html_table`, with the abbreviations of plain headings explained."""
    return html_table([one if isinstance(one, Cell) else Cell(marked(one)) for one in headings], rows, last_is_joint)
