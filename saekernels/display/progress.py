"""Progress of what takes long: a bar in a terminal or in a notebook, with the speed and the time that is left."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator

from saekernels.errors import missing_extra

Tell = Callable[[int, int], None]
# Every update of a notebook's cell is a message to the browser.
_SECONDS_BETWEEN = 0.2


def progress_bar(shown: bool = True) -> contextlib.AbstractContextManager[Tell]:
    """A bar for the argument `progress` of `evaluate`: a context that gives progress(done, total).

    In a terminal it stands on stderr, and is gone at the end; in a notebook it stands below the cell, and stays.
    Elsewhere, and unless `shown`, nothing is written. A notebook needs no package for it, a terminal rich.

        with saekernels.progress_bar() as progress:
            report = saekernels.evaluate(model, tokenizer, saes, documents, progress=progress)

    Raises InputError (a ValueError) where rich is missing, outside of a notebook.
    """
    return _in_notebook(shown) if _is_notebook() else _in_terminal(shown)


def _is_notebook() -> bool:
    """Whether this runs in a kernel, which draws HTML; IPython in a terminal has none."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class _Pace:
    """Speed since the first call; what a run that goes on had done before is no part of it."""

    def __init__(self) -> None:
        self.started, self.before = time.perf_counter(), 0
        self.done = self.total = 0

    def __call__(self, done: int, total: int) -> None:
        if not self.total:
            self.started, self.before = time.perf_counter(), done
        self.done, self.total = done, total

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def per_second(self) -> float | None:
        """Tokens times passes; None in the first second."""
        return (self.done - self.before) / self.elapsed if self.elapsed > 1 else None

    def told(self) -> str:
        """The speed, or nothing as long as there is none."""
        speed = self.per_second
        return "" if speed is None else f"{speed:,.0f} tokens x passes/s"


@contextlib.contextmanager
def _in_terminal(shown: bool) -> Iterator[Tell]:
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
    pace = _Pace()
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("evaluating", total=None, speed="")

        def progress(done: int, total: int) -> None:
            pace(done, total)
            bar.update(task, completed=done, total=total, speed=pace.told())

        yield progress


@contextlib.contextmanager
def _in_notebook(shown: bool) -> Iterator[Tell]:
    """By the kernel's own messages, which every front end draws; rich and tqdm would need ipywidgets."""
    pace = _Pace()
    if not shown:
        yield pace
        return
    handle = importlib.import_module("IPython.display").display(_bar(pace), raw=True, display_id=True)
    drawn = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal drawn
        pace(done, total)
        if time.perf_counter() - drawn >= _SECONDS_BETWEEN:
            handle.update(_bar(pace), raw=True)
            drawn = time.perf_counter()

    try:
        yield progress
    finally:
        handle.update(_bar(pace), raw=True)


def _bar(pace: _Pace) -> dict[str, str]:
    """The state as HTML, and as text for front ends that show none."""
    if not pace.total:
        return {"text/html": "<progress></progress> evaluating", "text/plain": "evaluating"}
    text = f"{100 * pace.done // pace.total} %"
    speed = pace.per_second
    if pace.done >= pace.total:
        text += f", {pace.done:,} tokens x passes, {pace.elapsed:.1f} s"
    elif speed:
        text += f", {pace.told()}, {(pace.total - pace.done) / speed:,.0f} s left"
    return {"text/html": f'<progress value="{pace.done}" max="{pace.total}"></progress> {text}', "text/plain": text}
