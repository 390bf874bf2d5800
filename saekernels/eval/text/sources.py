"""Where documents come from: files, directories, patterns of files, saved data sets, and the Hugging Face hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saekernels.errors import InputError, first_line, missing_extra
from saekernels.eval.text.documents import Document
from saekernels.eval.text.records import READERS, Fields, Skipped, kind, read_file, stem, to_document

SHUFFLE_BUFFER = 10_000
_DATASET_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.\-\[\]:%+]+))?")
_PREFERRED_SPLITS = ("test", "validation", "train")


class DocumentList(list[Document]):
    """Documents in memory. skipped: how many records had no text."""

    skipped = 0


def load_documents(
    sources: Sequence[str | os.PathLike[str]],
    *,
    text_field: str = "text",
    domain_field: str | None = None,
    label_fields: Sequence[str] = (),
    seed: int = 0,
) -> Iterable[Document]:
    """Read documents from files, directories, patterns, saved data sets, or one Hugging Face data set id.

    Files are .txt (one document each), .jsonl (also .gz, .zst), .json (also .gz: an array, or a record in each line),
    .csv and .tsv (with a first row of names) or .parquet, one document per record, read into a list in the given order;
    directories are walked in sorted order. A pattern such as "src/**/*.py" takes every file that fits; those of other
    kinds are one text each, of a domain named by their suffix. Without a domain field, a record's domain is its file's
    name without suffixes; a .txt file found in a directory takes the name of the folder it lies in. Each of
    `label_fields` becomes one of a record's labels; .txt files have none. A field may lie in another: "meta.text".
    A record without a text may have tokens instead ("input_ids" or "tokens", or the field that is named): they are
    evaluated as they are, without bytes. Records whose text is empty or null are left out, and counted (`skipped`).
    A folder that `datasets` saved is read from there, `FOLDER[@SPLIT]`. A data set id, `NAME[:CONFIG][@SPLIT]`, is
    streamed, shuffled by `seed` within a buffer of 10,000 records; it must be the only source.

    Raises InputError for anything that cannot be read.
    """
    if not sources:
        raise InputError("data: no source was given; need files, directories or a data set id")
    fields = Fields(text_field, domain_field, tuple(label_fields))
    names = [os.fspath(source) for source in sources]
    streams = [name for name in names if _saved(name) is None and not _exists(Path(name)) and _is_dataset_id(name)]
    if streams:
        if len(names) > 1:
            raise InputError(
                f"data: the data set {streams[0]!r} (not a file here) must be the only source, got {len(names)}"
            )
        return _stream_dataset(names[0], fields, seed)
    skipped = Skipped()
    documents = DocumentList(document for name in names for document in _read_source(name, fields, skipped))
    documents.skipped = skipped.count
    if not documents:
        raise InputError(f"data: no text in {', '.join(names)}")
    return documents


def source(documents: object) -> str | None:
    """The name of a data set that is streamed; None for an iterable of another kind, which tells none."""
    return f"{documents.where}, {documents.fields}" if isinstance(documents, _Stream) else None


def skipped_in(documents: object) -> int:
    """How many records of these documents had no text, so far as they were read."""
    if isinstance(documents, _Stream):
        return documents.left_out.count
    return documents.skipped if isinstance(documents, DocumentList) else 0


def files_of(source: str | os.PathLike[str]) -> list[Path]:
    """The files that are read for a source: itself, those that fit a pattern, or those in a directory; sorted."""
    path = Path(source)
    if not _exists(path):
        return [Path(found) for found in sorted(glob.glob(os.fspath(source), recursive=True)) if os.path.isfile(found)]
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and kind(file))


def _is_dataset_id(name: str) -> bool:
    looks_like_path = name.lower().endswith((*READERS, "/", ".gz", ".json")) or name.startswith((".", "/", "~"))
    return not looks_like_path and _DATASET_ID.fullmatch(name) is not None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"data: cannot read {path}: {error.strerror}") from error


def _read_source(name: str, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    path, saved = Path(name), _saved(name)
    if saved is not None:
        yield from _read_saved(*saved, fields, skipped)
        return
    files = files_of(name)
    if not _exists(path):
        if not files:
            raise InputError(f"data: {name} does not exist" + (", no file fits it" if glob.has_magic(name) else ""))
        for file in files:
            yield from read_file(file, fields, stem(file) if kind(file) else file.suffix[1:] or "text", skipped)
        return
    if not files:
        raise InputError(f"data: the directory {path} holds no {', '.join(READERS)} file")
    for file in files:
        if not kind(file):
            raise InputError(f"data: {file} is of an unknown kind; need one of {', '.join(READERS)}, or a pattern")
        in_folder = path.is_dir() and kind(file) == ".txt"
        yield from read_file(file, fields, file.parent.name if in_folder else stem(file), skipped)


def _saved(name: str) -> tuple[Path, str | None] | None:
    """(folder, split) of what `datasets` saved to the disk; None for any other source."""
    for folder, split in ((name, None), name.rpartition("@")[::2]):
        path = Path(folder)
        if folder and _exists(path) and any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            return path, split
    return None


def _read_saved(path: Path, split: str | None, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing_extra("datasets", f"the saved data set {path}") from error
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged folder makes datasets and pyarrow raise
        raise InputError(f"data: cannot read the saved data set {path}: {first_line(error)}") from error
    if isinstance(found, Mapping):
        chosen = split or _preferred(list(found))
        if chosen not in found:
            raise InputError(f"data: {path} has no split {chosen!r}; it has {', '.join(found)}")
        found = found[chosen]
    elif split is not None:
        raise InputError(f"data: {path} has no splits, so no {split!r}")
    for number, record in enumerate(found):
        yield from to_document(record, fields, path.name, f"{path}, record {number}", skipped)


def _preferred(splits: list[str]) -> str:
    return next((known for known in _PREFERRED_SPLITS if known in splits), splits[0])


@dataclass(frozen=True)
class _Stream:
    """A data set that is read anew, in the same order, by every iteration."""

    records: Iterable[Mapping[str, Any]]
    fields: Fields
    where: str
    left_out: Skipped = field(default_factory=Skipped)

    def __iter__(self) -> Iterator[Document]:
        self.left_out.count = 0
        try:
            for number, record in enumerate(self.records):
                yield from to_document(record, self.fields, self.where, f"{self.where}, record {number}", self.left_out)
        except OSError as error:
            raise InputError(f"data: reading the data set {self.where} failed: {first_line(error)}") from error


def _stream_dataset(name: str, fields: Fields, seed: int) -> Iterable[Document]:
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", f"the data set {name!r} (no such file)") from error
    match = _DATASET_ID.fullmatch(name)
    if match is None:
        raise InputError(f"data: {name!r} is neither a file nor a data set id")
    dataset, config, split = match["name"], match["config"], match["split"]
    try:
        if split is None:
            split = _preferred(datasets.get_dataset_split_names(dataset, config))
        stream = datasets.load_dataset(dataset, config, split=split, streaming=True)
        records = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(
            f"data: {name!r} is no file here and cannot be loaded as a data set: {first_line(error)}"
        ) from error
    return _Stream(records, fields, f"{dataset}@{split}")
