"""Files that end in the checksum of what is before it, so that a run never goes on from damaged ones.

A bit that flips in an archive of tensors can leave it readable, with another number in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from saekernels.files import atomic

_MARK = b"\nsha256:"
SIZE = len(_MARK) + 64 + 1
_AT_ONCE = 1 << 22


def seal(content: bytes) -> bytes:
    """What stands behind this content."""
    return _line(hashlib.sha256(content).hexdigest())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """`atomic.writing` of a sealed file: its seal is added once all is written."""
    with atomic.writing(path) as file:
        yield file
        file.flush()
        file.seek(0)
        line = _line(_digest(file, os.fstat(file.fileno()).st_size))
        file.seek(0, os.SEEK_END)
        file.write(line)


def write(path: Path, content: bytes) -> None:
    """Write a sealed file, whole or not at all."""
    atomic.write_whole(path, content + seal(content))


def check(path: Path) -> int:
    """The size in bytes of what is sealed. Raises ValueError if it is not what was written there; OSError."""
    size = path.stat().st_size - SIZE
    with open(path, "rb") as file:
        found = _digest(file, size) if size >= 0 else ""
        if file.read() != _line(found):
            raise ValueError("it is cut short or damaged (its checksum is another)")
    return size


def read(path: Path) -> bytes:
    """What is sealed. Raises as `check` does."""
    content = path.read_bytes()
    if content[-SIZE:] != seal(content[:-SIZE]):
        raise ValueError("it is cut short or damaged (its checksum is another)")
    return content[:-SIZE]


def _line(digest: str) -> bytes:
    return _MARK + digest.encode() + b"\n"


def _digest(file: IO[bytes], size: int) -> str:
    """Of the next `size` bytes."""
    digest = hashlib.sha256()
    while size > 0 and (piece := file.read(min(size, _AT_ONCE))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()
