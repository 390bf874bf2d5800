"""The header of a GGUF file: what it says of itself, and which tensors it holds in which types."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import Any

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
# Types of values of a fixed size, by their numbers in the format.
_FIXED = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufHeader:
    """fields: by their names; an array stands there as the number of its items. tensors: name -> (type, items).

    Types are the format's own numbers (`gguf.GGMLQuantizationType`).
    """

    fields: dict[str, Any]
    tensors: dict[str, tuple[int, int]]


class _Cursor:
    """Reads a file's bytes one value after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise struct.error("it ends too early")
        self.at += size

    def text(self) -> str:
        length = self.number("<Q")
        start = self.at
        self.skip(length)
        return self.data[start : start + length].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_FIXED[kind])
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _FIXED:
            self.skip(count * struct.calcsize(_FIXED[inner]))
        else:
            for _ in range(count):
                self.value(inner)
        return count


def read_gguf_header(path: str | os.PathLike[str]) -> GgufHeader:
    """The header, in time that does not grow with the tensors. Raises OSError, or ValueError for a damaged file."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it is no GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data)
            try:
                return _header(cursor)
            except (struct.error, KeyError, UnicodeDecodeError, RecursionError) as error:
                raise ValueError(f"its header is damaged at byte {cursor.at:,}") from error


def _header(cursor: _Cursor) -> GgufHeader:
    cursor.skip(len(_MAGIC))
    version, tensors, fields = cursor.number("<I"), cursor.number("<Q"), cursor.number("<Q")
    if version not in _VERSIONS:
        raise ValueError(f"it is GGUF of version {version}; versions 2 and 3 are read")
    found, held = {}, {}
    for _ in range(fields):
        name = cursor.text()
        found[name] = cursor.value(cursor.number("<I"))
    for _ in range(tensors):
        name, items = cursor.text(), 1
        for _ in range(cursor.number("<I")):
            items *= cursor.number("<Q")
        held[name] = (cursor.number("<I"), items)
        cursor.number("<Q")
    return GgufHeader(found, held)
