"""Documents and where they come from: text files, JSON lines, parquet, directories of these, Hugging Face data sets."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saekernels.errors import InputError, first_line, kind_of, missing_extra

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
SHUFFLE_BUFFER = 10_000
_UTF_8 = "utf-8-sig"  # with or without a byte order mark, which is no part of the text
_DATASET_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.\-\[\]:%+]+))?")


@dataclass(frozen=True)
class Document:
    """One text of the evaluated distribution: the unit over which the bootstrap resamples.

    labels: further strata by name, such as {"language": "de"}.
    """

    text: str
    domain: str = "all"
    source: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("text", "domain", "source"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"Document: {name} is {value!r:.40}, need a str")
        if not isinstance(self.labels, Mapping) or not all(
            isinstance(s, str) for kv in self.labels.items() for s in kv
        ):
            raise TypeError(f"Document: labels is {self.labels!r:.40}, need a mapping from str to str")
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"Document: text is not valid Unicode: {first_line(error)}") from error


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold its text, its domain (None: "domain", else the file's name) and its labels."""

    text: str = "text"
    domain: str | None = None
    labels: tuple[str, ...] = ()


def load_documents(
    sources: Sequence[str | os.PathLike[str]],
    *,
    text_field: str = "text",
    domain_field: str | None = None,
    label_fields: Sequence[str] = (),
    seed: int = 0,
) -> Iterable[Document]:
    """Read documents from files, directories, or one Hugging Face data set id.

    Files are .txt (one document each), .jsonl, .jsonl.gz or .parquet (one document per record), read into a list in
    the given order; directories are walked in sorted order. Without a domain field, a record's domain is its file's
    name without suffixes; a .txt file found in a directory takes the name of the folder it lies in. Each of
    `label_fields` becomes one of a record's labels; .txt files have none.
    A data set id, `NAME[:CONFIG][@SPLIT]`, is streamed, shuffled by `seed` within a buffer of 10,000 records; it must
    be the only source. Empty texts are left out.

    Raises InputError for anything that cannot be read.
    """
    if not sources:
        raise InputError("data: no source was given; need files, directories or a data set id")
    fields = Fields(text_field, domain_field, tuple(label_fields))
    names = [os.fspath(source) for source in sources]
    streams = [name for name in names if not _exists(Path(name)) and _is_dataset_id(name)]
    if streams:
        if len(names) > 1:
            raise InputError(
                f"data: the data set {streams[0]!r} (not a file here) must be the only source, got {len(names)}"
            )
        return _stream_dataset(names[0], fields, seed)
    documents = [document for name in names for document in _read_source(Path(name), fields)]
    if not documents:
        raise InputError(f"data: no text in {', '.join(names)}")
    return documents


def check_documents(documents: object) -> None:
    """TypeError unless `documents` can be gone through; of a sequence, unless each is a Document."""
    if not isinstance(documents, Iterable):
        raise TypeError(f"documents: got {kind_of(documents)}, need an iterable of saekernels.Document")
    for number, document in enumerate(documents if isinstance(documents, Sequence) else ()):
        check_document(document, number)


def check_document(document: object, number: int) -> None:
    """TypeError unless the document with this number is one."""
    if not isinstance(document, Document):
        raise TypeError(f"documents: number {number} is {kind_of(document)}, need a saekernels.Document")


def digest(documents: Iterable[Document]) -> str:
    """A short digest of texts, domains and labels, in order."""
    running = hashlib.sha256()
    for document in documents:
        head = json.dumps([document.domain, sorted(document.labels.items()), len(document.text)])
        running.update(head.encode() + document.text.encode())
    return running.hexdigest()[:16]


def source(documents: object) -> str | None:
    """The name of a data set that is streamed; None for an iterable of another kind, which tells none."""
    return f"{documents.where}, {documents.fields}" if isinstance(documents, _Stream) else None


def _is_dataset_id(name: str) -> bool:
    looks_like_path = name.lower().endswith((*SUFFIXES, "/", ".gz", ".json")) or name.startswith((".", "/", "~"))
    return not looks_like_path and _DATASET_ID.fullmatch(name) is not None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"data: cannot read {path}: {error.strerror}") from error


def files_of(path: Path) -> list[Path]:
    """The files that are read for a source: itself, or those in a directory, sorted; none if it is not there."""
    if not _exists(path):
        return []
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))


def _kind(path: Path) -> str:
    """The suffix that says how to read a file, whatever its case; "" for none."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def _read_source(path: Path, fields: Fields) -> Iterator[Document]:
    if not _exists(path):
        raise InputError(f"data: {path} does not exist")
    files = files_of(path)
    if not files:
        raise InputError(f"data: the directory {path} holds no {', '.join(SUFFIXES)} file")
    for file in files:
        in_folder = path.is_dir() and _kind(file) == ".txt"
        yield from _read_file(file, fields, file.parent.name if in_folder else stem(file))


def stem(path: Path) -> str:
    """The file's name without its suffixes: "web.jsonl.gz" -> "web"."""
    suffix = _kind(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def _read_file(path: Path, fields: Fields, domain: str) -> Iterator[Document]:
    kind = _kind(path)
    try:
        if kind in (".jsonl", ".jsonl.gz"):
            yield from _read_jsonl(path, fields, domain)
        elif kind == ".parquet":
            yield from _read_parquet(path, fields, domain)
        elif kind == ".txt":
            text = path.read_text(encoding=_UTF_8)
            if text:
                yield Document(text, domain, str(path))
        else:
            raise InputError(f"data: {path} is of an unknown kind; need one of {', '.join(SUFFIXES)}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"data: cannot read {path}: {first_line(error)}") from error


def _read_jsonl(path: Path, fields: Fields, domain: str) -> Iterator[Document]:
    open_text = gzip.open if _kind(path) == ".jsonl.gz" else open
    with open_text(path, "rt", encoding=_UTF_8) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and endless nesting
                raise InputError(f"data: {where} is not JSON that can be read: {first_line(error)}") from error
            if not isinstance(record, dict):
                raise InputError(
                    f"data: {where} is a {type(record).__name__}; need an object with the field {fields.text!r}"
                )
            yield from _to_document(record, fields, domain, where)


def _read_parquet(path: Path, fields: Fields, domain: str) -> Iterator[Document]:
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
                yield from _to_document(record, fields, domain, f"{path}, row {number}")
    except pa.ArrowException as error:
        raise InputError(f"data: cannot read {path}: {first_line(error)}") from error


def _to_document(record: Mapping[str, Any], fields: Fields, domain: str, where: str) -> Iterator[Document]:
    text = record.get(fields.text)
    if not isinstance(text, str):
        found = ", ".join(map(repr, record)) or "none"
        raise InputError(f"data: {where} has no text in the field {fields.text!r}; its fields: {found}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"data: {where} is not valid Unicode: {first_line(error)}") from error
    key = fields.domain or "domain"
    if fields.domain is not None and key not in record:
        raise InputError(
            f"data: {where} has no field {key!r} for its domain; its fields: {', '.join(map(repr, record))}"
        )
    missing = [name for name in fields.labels if name not in record]
    if missing:
        found = ", ".join(map(repr, record))
        raise InputError(f"data: {where} has no field {missing[0]!r} for a label; its fields: {found}")
    label = record.get(key)
    if text:
        labels = {name: str(record[name]) for name in fields.labels}
        yield Document(text, domain if label is None else str(label), str(record.get("source") or where), labels)


@dataclass(frozen=True)
class _Stream:
    """A data set that is read anew, in the same order, by every iteration."""

    records: Iterable[Mapping[str, Any]]
    fields: Fields
    where: str

    def __iter__(self) -> Iterator[Document]:
        try:
            for number, record in enumerate(self.records):
                yield from _to_document(record, self.fields, self.where, f"{self.where}, record {number}")
        except OSError as error:
            raise InputError(f"data: reading the data set {self.where} failed: {first_line(error)}") from error


def _stream_dataset(name: str, fields: Fields, seed: int) -> Iterable[Document]:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing_extra("datasets", f"the data set {name!r} (no such file)") from error
    match = _DATASET_ID.fullmatch(name)
    if match is None:
        raise InputError(f"data: {name!r} is neither a file nor a data set id")
    dataset, config, split = match["name"], match["config"], match["split"]
    try:
        if split is None:
            splits = datasets.get_dataset_split_names(dataset, config)
            split = next((known for known in ("test", "validation", "train") if known in splits), splits[0])
        stream = datasets.load_dataset(dataset, config, split=split, streaming=True)
        records = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(
            f"data: {name!r} is no file here and cannot be loaded as a data set: {first_line(error)}"
        ) from error
    return _Stream(records, fields, f"{dataset}@{split}")
