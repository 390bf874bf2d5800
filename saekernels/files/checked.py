"""Files that are read, and output files, which appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from saekernels.errors import InputError
from saekernels.files import atomic


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file. Raises OSError or ValueError, which nesting without end is, too."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_count(value: object) -> bool:
    """Whether this is a whole number from 0 to 2^63 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_column(value: object, kind: type, optional: bool = False) -> bool:
    """Whether this is a list of str, of counts (int) or of finite numbers (float), None too if `optional`."""
    if not isinstance(value, list):
        return False
    left = [one for one in value if one is not None or not optional]
    if kind is str:
        return all(isinstance(one, str) for one in left)
    if kind is int:
        return all(map(is_count, left))
    return all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e300 for one in left)


def check_writable(path: str | os.PathLike[str], option: str = "") -> None:
    """Raise InputError, naming the option, if `path` could not be written later, without leaving anything behind."""
    target, named = Path(path), f"{option}: " if option else ""
    try:
        reason = _obstacle(target)
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:  # a NUL byte in the name
        raise InputError(f"{named}cannot write {str(target)!r}: {error}") from error
    if reason is not None:
        raise InputError(f"{named}cannot write {target}: {reason}")


def make_folder(path: str | os.PathLike[str], option: str) -> Path:
    """The folder at `path`, which is made if it is not there. Raises InputError, naming the option, if it cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option}: cannot make {folder}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte in the name
        raise InputError(f"{option}: cannot make {str(folder)!r}: {error}") from error
    return folder


def _obstacle(target: Path) -> str | None:
    if target.is_dir():
        return "it is a directory"
    if atomic.is_special(target):
        # Not opened before there is something to write: a pipe's reader would see it end.
        return None if os.access(target, os.W_OK) else "permission denied"
    parent = os.path.dirname(os.path.realpath(target))
    if not os.path.isdir(parent):
        return f"the directory {parent} does not exist"
    handle, temporary = atomic.temporary_in(parent)
    os.close(handle)
    os.unlink(temporary)
    return None


def same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether both names, links resolved, are of one file; of one place, where no file is yet."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all. Raises InputError if the place cannot be written.

    A symbolic link is followed; a pipe or a device is written to as it is.
    """
    check_writable(path)
    try:
        # A file name in the report that is not valid Unicode must not lose the result.
        atomic.write_whole(Path(path), text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise InputError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error
