"""Plain tables for a terminal: text in the first columns, numbers to the right; nothing is cut, no line is padded."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

WIDTH = 99
_GAP = "  "
# A folded name keeps at least this much, whatever stands beside it.
_LEAST = 12


def line_width() -> int:
    """The columns of a line: 99, fewer in a narrower terminal."""
    return min(WIDTH, shutil.get_terminal_size().columns) if _is_terminal() else WIDTH


def wrapped(text: str, width: int | None = None) -> str:
    """Paragraphs folded at blanks; a longer word, such as a path, stays whole."""
    width = width or line_width()
    folded = (textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in text.splitlines())
    return "\n".join("\n".join(lines) for lines in folded)


def strong(text: str, styled: bool | None = None) -> str:
    """The lines in bold if `styled`; for None, if stdout is a terminal that shows it."""
    if styled is None:
        styled = _is_terminal() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return "\n".join(f"\x1b[1m{line}\x1b[0m" for line in text.split("\n")) if styled else text


def text_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    before: str = "",
    after: str = "",
    left: int = 1,
    width: int | None = None,
    styled: bool | None = None,
    last_is_joint: bool = False,
) -> str:
    """A line before, the table, text after it; `left` columns are text, the others are aligned to the right.

    Columns that do not fit stand in a further table below, under the same first columns; names that do not fit are
    folded. `width`: of a line (None: `line_width()`). `styled`: as of `strong`, for headings and a joint last row.
    """
    width = width or line_width()
    table = [[_printable(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(_columns, column)) for column in zip(*table, strict=True)]
    widths[:left] = _narrowed(widths, left, width)
    parts = []
    for columns in _packed(widths, left, width):
        lines = [_line(row, columns, widths, left) for row in table]
        head, *body = lines
        rule = "─" * max(_columns(line) for text in lines for line in text.split("\n"))
        if last_is_joint:
            body[-1] = strong(body[-1], styled)
        parts.append("\n".join([strong(head, styled), rule, *body]))
    texts = [strong(wrapped(before, width), styled) if before else "", *parts, wrapped(after, width) if after else ""]
    return "\n\n".join(filter(None, texts)) + "\n"


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _printable(text: str) -> str:
    """A name must not move the cursor."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.combining(one) != 0 for one in text)


def _narrowed(widths: Sequence[int], left: int, width: int) -> list[int]:
    """Widths of the first columns, the widest of them cut down until the widest number fits beside them."""
    found = list(widths[:left])
    room = width - max(widths[left:], default=0) - left * len(_GAP)
    while sum(found) > room and max(found) > _LEAST:
        found[found.index(max(found))] -= 1
    return found


def _packed(widths: Sequence[int], left: int, width: int) -> list[list[int]]:
    """The columns of each part: the first `left`, then every further one in the first part with room for it."""
    first = sum(widths[:left]) + (left - 1) * len(_GAP)
    parts: list[list[int]] = []
    used: list[int] = []
    for column in range(left, len(widths)):
        needed = len(_GAP) + widths[column]
        place = next((index for index, taken in enumerate(used) if taken + needed <= width), len(parts))
        if place == len(parts):
            parts.append(list(range(left)))
            used.append(first)
        parts[place].append(column)
        used[place] += needed
    return parts or [list(range(left))]


def _line(row: Sequence[str], columns: Sequence[int], widths: Sequence[int], left: int) -> str:
    """One row; folded names continue on further lines."""
    folded = {column: list(_folded(row[column], widths[column])) for column in columns}
    lines = []
    for number in range(max(map(len, folded.values()))):
        cells = []
        for column in columns:
            text = folded[column][number] if number < len(folded[column]) else ""
            blanks = " " * (widths[column] - _columns(text))
            cells.append(text + blanks if column < left else blanks + text)
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def _folded(text: str, width: int) -> Iterator[str]:
    """The text in pieces of at most `width` columns; one character at least."""
    piece = ""
    for one in text:
        if piece and _columns(piece + one) > width:
            yield piece
            piece = ""
        piece += one
    yield piece
