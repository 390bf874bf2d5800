"""Output files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from saekernels import atomic

from .errors import InputError


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise InputError if `path` could not be written later, without leaving anything behind."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a directory")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: the directory {target.parent} does not exist")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    os.close(handle)
    os.unlink(temporary)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all. Raises InputError if the place cannot be written."""
    target = Path(path)
    check_writable(target)
    try:
        atomic.write_whole(target, text.encode("utf-8"))
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
