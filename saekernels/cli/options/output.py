"""What goes to stdout and to stderr, and what happens when it cannot."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from saekernels.display.numbers import counted
from saekernels.files.checked import write_whole


class OutputError(Exception):
    """stdout cannot be written, for another reason than that its reader has gone (BrokenPipeError)."""


def show(text: str) -> None:
    """Print `text` now, as it is. Raises BrokenPipeError or OutputError if it does not arrive."""
    with arriving():
        if sys.stdout is None:
            raise OutputError("it is closed")
        sys.stdout.write(text)
        sys.stdout.flush()


@contextlib.contextmanager
def showing(goes_on: bool = True) -> Iterator[Callable[[str], None]]:
    """What shows texts within; if `goes_on`, also where nobody can see them.

    Files are then all that stays of hours of work. Raises what kept the texts from being seen at the end.
    """
    unseen: list[Exception] = []

    def say(text: str) -> None:
        if unseen:
            return
        try:
            show(text)
        except (OutputError, BrokenPipeError) as error:
            if not goes_on:
                raise
            unseen.append(error)

    yield say
    if unseen:
        raise unseen[0]


@contextlib.contextmanager
def shown(text: str) -> Iterator[None]:
    """Show the text, then do what is within, as `showing`."""
    with showing() as say:
        say(text)
        yield


def write_json(path: str | None, result: Mapping[str, Any]) -> None:
    """Write a command's result as JSON, whole or not at all; None was not asked for."""
    if path:
        write_whole(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


def show_written(files: Iterable[tuple[str | None, str]]) -> None:
    """Say of each (path, what for) that it was written; None was not asked for."""
    lines = [f"wrote {path} ({what})" for path, what in files if path]
    if lines:
        show("\n" + "\n".join(lines) + "\n")


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Whatever is printed inside arrives by the end, or fails as `show` does, and not at the interpreter's exit."""
    try:
        yield
    finally:
        if sys.stdout is not None:
            with arriving():
                sys.stdout.flush()


@contextlib.contextmanager
def arriving() -> Iterator[None]:
    """Failures to write inside are those of stdout."""
    try:
        yield
    except OSError as error:
        _send_the_rest_nowhere()
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(error.strerror or str(error)) from error


def _send_the_rest_nowhere() -> None:
    """What stdout still holds would fail again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """A line on stderr."""
    # A stderr that cannot be written must not cost the result.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def say_finished(tokens: int, passes: int, seconds: float) -> None:
    """The line that stays."""
    speed = tokens / max(seconds, 1e-9)
    say(f"{counted(tokens, 'token')}, {passes} passes in {seconds:.1f} s: {speed:,.0f} tokens/s")
