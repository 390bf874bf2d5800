"""Which files of a checkpoint are opened; and checkpoints that are only looked at, no matrix brought into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

_FILES: ContextVar[list[Path] | None] = ContextVar("_FILES", default=None)
_LOOKING: ContextVar[bool] = ContextVar("_LOOKING", default=False)


@contextlib.contextmanager
def followed() -> Iterator[list[Path]]:
    """The files that readers open inside; they count for whoever follows outside as well, unless reading them fails."""
    made: list[Path] = []
    outer = _FILES.get()
    token = _FILES.set(made)
    try:
        yield made
    finally:
        _FILES.reset(token)
    if outer is not None:
        outer.extend(path for path in made if path not in outer)


@contextlib.contextmanager
def looking() -> Iterator[list[Path]]:
    """Inside, readers map matrices instead of reading them, and leave them as they are. Yields the files they open."""
    token = _LOOKING.set(True)
    try:
        with followed() as files:
            yield files
    finally:
        _LOOKING.reset(token)


def is_looking() -> bool:
    """Whether nobody will see the values of matrices: then what makes new ones of them is left out."""
    return _LOOKING.get()


def opened(path: Path) -> None:
    """Note that a file is read."""
    files = _FILES.get()
    if files is not None and path not in files:
        files.append(path)
