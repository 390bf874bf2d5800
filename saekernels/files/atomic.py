"""Output files appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

_STANDARD_STREAMS = (1, 2)
# The names of files that are being written; whoever locks a folder may remove those that a killed process left there.
TEMPORARIES = ".saekernels.*.tmp"


def write_whole(path: Path, data: bytes) -> None:
    """`write_all` for one file."""
    write_all({path: data})


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write each file's data to a temporary file beside it and sync it; rename them only when all are written.

    A reader sees an old file or a new one, never a part. A symbolic link stays, and the file that it leads to is
    replaced. What is there and is no regular file (a device, a pipe) is opened and written to. Raises OSError if a
    place cannot be written, ValueError if it cannot even be named.
    """
    direct = {path: data for path, data in files.items() if _written_in_place(path)}
    staged: list[tuple[str, str]] = []
    try:
        for path, data in files.items():
            if path not in direct:
                target = os.path.realpath(path)
                staged.append((_stage(target, data), target))
        while staged:
            os.replace(*staged[0])
            staged.pop(0)
    finally:
        for temporary, _ in staged:
            os.unlink(temporary)
    for path, data in direct.items():
        _write_in_place(path, data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which is synced and takes the name `path` once all went well, and is gone if not."""
    handle, temporary = temporary_in(os.path.dirname(os.path.abspath(path)))
    try:
        with os.fdopen(handle, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def temporary_in(directory: str) -> tuple[int, str]:
    """An open, empty file that is not there for others to read yet: (descriptor, path)."""
    # Not named after what it will be, whose name may already be as long as a name can be.
    return tempfile.mkstemp(prefix=".saekernels.", suffix=".tmp", dir=directory)


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether something is there that is neither a regular file nor a directory: a device, a pipe, a socket.

    Raises OSError or ValueError for what cannot be a path.
    """
    there = _stat(path)
    return there is not None and not stat.S_ISREG(there.st_mode) and not stat.S_ISDIR(there.st_mode)


def _written_in_place(path: Path) -> bool:
    return is_special(path) or _own_stream(path) is not None


def _own_stream(path: Path) -> int | None:
    """The standard stream that already has this file open, as /dev/stdout has whatever stdout was sent to.

    Replaced or opened anew, a file there would lose what was printed to it.
    """
    there = _stat(path)
    for stream in _STANDARD_STREAMS:
        with contextlib.suppress(OSError):
            if there is not None and os.path.samestat(there, os.fstat(stream)):
                return stream
    return None


def _write_in_place(path: Path, data: bytes) -> None:
    stream = _own_stream(path)
    with open(path if stream is None else stream, "wb", closefd=stream is None) as out:
        out.write(data)


def _stage(target: str, data: bytes) -> str:
    """The name of a synced temporary file beside `target` with this content and the mode that `target` will have."""
    there = _stat(target)
    mode = 0o666 & ~_umask() if there is None else stat.S_IMODE(there.st_mode)
    handle, temporary = temporary_in(os.path.dirname(target))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def _stat(path: str | os.PathLike[str]) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _umask() -> int:
    # mkstemp makes files private; the result should have the mode that open() would give.
    mask = os.umask(0)
    os.umask(mask)
    return mask
