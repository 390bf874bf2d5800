"""Plain tables for a terminal: text in the first columns, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence

from saekernels.errors import missing_extra

PLAIN_WIDTH = 140
TEXT_WIDTH = 100


def text_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, before: str = "", after: str = "", left: int = 1
) -> str:
    """A line before, the table, text after it, as a terminal shows them; `left` columns are text. Needs rich.

    Cells that do not fit are folded, never cut. Output that is no terminal has 140 columns.
    """
    try:
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError as error:
        raise missing_extra("rich", "the table") from error
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(escape(heading), justify="left" if number < left else "right", overflow="fold")
    for cells in rows:
        table.add_row(*map(escape, cells))
    with console.capture() as capture:
        if before:
            console.print(escape(before), style="bold")
        console.print(table)
        if after:
            console.print(escape(after), width=min(console.width, TEXT_WIDTH))
    return capture.get()
