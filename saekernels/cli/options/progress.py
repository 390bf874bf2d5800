"""A progress bar on stderr with tokens per second; a single line at the end where stderr is no terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from saekernels.display.numbers import counted
from saekernels.errors import missing_extra


@contextlib.contextmanager
def progress_bar(shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Yields progress(done, total) in tokens times passes; the speed is in these, too. `shown`: by this process."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    except ImportError as error:
        raise missing_extra("rich", "the progress bar") from error
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    started: float | None = None
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("evaluating", total=None, speed="")

        def progress(done: int, total: int) -> None:
            nonlocal started
            started = started or time.perf_counter()
            elapsed = time.perf_counter() - started
            speed = f"{done / elapsed:,.0f} tokens x passes/s" if elapsed > 1 else ""
            bar.update(task, completed=done, total=total, speed=speed)

        yield progress


def say(text: str) -> None:
    """A line on stderr."""
    # A stderr that cannot be written must not cost the result.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def say_finished(tokens: int, passes: int, seconds: float) -> None:
    """The line that stays."""
    speed = tokens / max(seconds, 1e-9)
    say(f"{counted(tokens, 'token')}, {passes} passes in {seconds:.1f} s: {speed:,.0f} tokens/s")
