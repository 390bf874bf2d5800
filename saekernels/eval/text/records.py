"""Records of files: JSON, JSON lines, CSV, parquet, plain text, compressed or not; and a record as a document."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from saekernels.errors import InputError, first_line, missing_extra
from saekernels.eval.text.documents import Document

_UTF_8 = "utf-8-sig"  # with or without a byte order mark, which is no part of the text
_TOKENS = ("input_ids", "tokens")
_LARGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold its text, its domain (None: "domain", else the file's name) and its labels.

    "meta.text" is a field inside another, where no field has that name itself.
    """

    text: str = "text"
    domain: str | None = None
    labels: tuple[str, ...] = ()


class Skipped:
    """How many records had no text: null, or empty."""

    def __init__(self) -> None:
        self.count = 0


def stem(path: Path) -> str:
    """The file's name without its suffixes: "web.jsonl.gz" -> "web"."""
    suffix = kind(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def kind(path: Path) -> str:
    """The suffix that says how to read a file, whatever its case; "" for none."""
    return next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), "")


def read_file(path: Path, fields: Fields, domain: str, skipped: Skipped) -> Iterator[Document]:
    """The documents of a file. Raises InputError, which names it and the line or row."""
    for where, record in read_records(path):
        yield from to_document(record, fields, domain, where, skipped)


def read_records(path: Path) -> Records:
    """(where, record) of each record of a file. Raises InputError, which names it and the line or row."""
    try:
        yield from READERS[kind(path) or ".txt"](path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data: cannot read {path}: {first_line(error)}") from error


Records = Iterator[tuple[str, Any]]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    if path.name.lower().endswith(".gz"):
        with gzip.open(path, "rt", encoding=_UTF_8, newline="") as stream:
            yield stream
    elif path.name.lower().endswith(".zst"):
        try:
            import zstandard
        except ImportError as error:
            raise InputError(f"data: reading {path} needs the package 'zstandard': pip install zstandard") from error
        try:
            with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as inner:
                yield io.TextIOWrapper(inner, encoding=_UTF_8, newline="")
        except zstandard.ZstdError as error:
            raise InputError(f"data: cannot read {path}: {first_line(error)}") from error
    else:
        with open(path, encoding=_UTF_8, newline="") as stream:
            yield stream


def _text(path: Path) -> Records:
    yield str(path), path.read_text(encoding=_UTF_8)


def _lines(path: Path) -> Records:
    with _opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _parsed(line, where)


def _json(path: Path) -> Records:
    """An array of records; or, as many files of that name hold, a record in each line."""
    with _opened(path) as stream:
        content = stream.read()
    if content.lstrip().startswith("["):
        found = _parsed(content, str(path))
        if not isinstance(found, list):
            raise InputError(f"data: {path} is a {type(found).__name__}; need an array of records, or one in each line")
        yield from ((f"{path}, record {number}", record) for number, record in enumerate(found, 1))
        return
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        yield from _lines(path)
        return
    yield str(path), whole


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and endless nesting
        raise InputError(f"data: {where} is not JSON that can be read: {first_line(error)}") from error


def _rows(delimiter: str) -> Callable[[Path], Records]:
    def read(path: Path) -> Records:
        csv.field_size_limit(_LARGEST_CELL)
        with _opened(path) as stream:
            rows = csv.DictReader(stream, delimiter=delimiter, strict=True)
            for number, row in enumerate(rows, 2):
                if None in row or None in row.values():
                    raise InputError(f"data: {path}, row {number} has another number of cells than the first row")
                yield f"{path}, row {number}", row

    return read


def _parquet(path: Path) -> Records:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing_extra("pyarrow", f"reading {path}") from error
    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
    except pa.ArrowException as error:
        raise InputError(f"data: cannot read {path}: {first_line(error)}") from error


READERS: dict[str, Callable[[Path], Records]] = {
    ".txt": _text,
    ".jsonl": _lines,
    ".jsonl.gz": _lines,
    ".jsonl.zst": _lines,
    ".json": _json,
    ".json.gz": _json,
    ".csv": _rows(","),
    ".tsv": _rows("\t"),
    ".parquet": _parquet,
}


def to_document(record: Any, fields: Fields, domain: str, where: str, skipped: Skipped) -> Iterator[Document]:
    """A record as a document: an object with a text or with tokens, or a text alone. None without either, counted."""
    if isinstance(record, str):
        record = {fields.text: record}
    if not isinstance(record, Mapping):
        raise InputError(f"data: {where} is a {type(record).__name__}; need an object with the field {fields.text!r}")
    value = _value_of(record, fields, where)
    if value is None or value == "" or value == []:
        skipped.count += 1
        return
    told = _domain(record, fields, where)
    labels = {name: str(_field(record, name, where, "a label")) for name in fields.labels}
    name, source = domain if told is None else str(told), str(record.get("source") or where)
    if isinstance(value, list):
        yield Document("", name, source, labels, tuple(value))
        return
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"data: {where} is not valid Unicode: {first_line(error)}") from error
    yield Document(value, name, source, labels)


def _value_of(record: Mapping[str, Any], fields: Fields, where: str) -> Any:
    """The text, or the tokens: in the field that is asked for or, where there is no "text", where they use to be."""
    names = (fields.text, *_TOKENS) if fields.text == "text" else (fields.text,)
    there, value = next((one for name in names if (one := look_up(record, name))[0]), (False, None))
    tokens = isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
    if not there or not (value is None or isinstance(value, str) or tokens):
        found = ", ".join(map(repr, record)) or "none"
        raise InputError(f"data: {where} has no text in the field {fields.text!r}; its fields: {found}")
    return value


def _domain(record: Mapping[str, Any], fields: Fields, where: str) -> Any:
    return record.get("domain") if fields.domain is None else _field(record, fields.domain, where, "its domain")


def _field(record: Mapping[str, Any], name: str, where: str, purpose: str) -> Any:
    there, value = look_up(record, name)
    if not there:
        found = ", ".join(map(repr, record))
        raise InputError(f"data: {where} has no field {name!r} for {purpose}; its fields: {found}")
    return value


def look_up(record: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """(whether a field is there, its value or None); "meta.text" is one inside another."""
    if name in record:
        return True, record[name]
    outer, dot, inner = name.partition(".")
    if dot and isinstance(record.get(outer), Mapping):
        return look_up(record[outer], inner)
    return False, None
