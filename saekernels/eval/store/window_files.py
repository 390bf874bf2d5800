"""The chosen windows on disk, in chunks of whole documents: memory does not grow with the text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from saekernels.eval.store.run_folder import damaged, written
from saekernels.eval.text.documents import Document
from saekernels.eval.text.windows import Window
from saekernels.files import sealed as seals

# What is estimated from "the first text" looks at so many positions of it, however it is cut.
FIRST_POSITIONS = 32_768
CHUNK_POSITIONS = 32_768
# Forward passes over a chunk of that size; a chunk that gets more of them is smaller, as a killed run loses what it
# has not finished.
_CHUNK_PASSES = 24
_CONTEXTS = 8
_META = "documents.json"


@dataclass
class Spool:
    """What will be evaluated: chunks of windows in files, and of each document its domain, labels and counts.

    tokenized: whether tokens stood in place of a text; left_out: records without a text; digests: SHA-256 of each text,
    16 hex digits; counts [documents, 2]: counted predictions and their bytes;
    frequencies [V] int64: how often each token is the target of a counted prediction; firsts: of each chunk, the
    number of its first document.
    """

    folder: Path
    chunks: int = 0
    tokens: int = 0
    positions: int = 0
    has_bytes: bool = True
    tokenized: bool = False
    left_out: int = 0
    domains: list[str] = field(default_factory=list)
    labels: list[Mapping[str, str]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    frequencies: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def per_document(self) -> np.ndarray:
        """[documents, 2] fp64: counted tokens and the bytes they stand for."""
        return np.asarray(self.counts, dtype=np.float64)

    def chunk(self, number: int) -> list[Window]:
        """The windows of one chunk, in the order of the text."""
        path = self.folder / f"windows-{number:06d}.npz"
        try:
            seals.check(path)
            with np.load(path, allow_pickle=False) as file:
                parts = {name: file[name] for name in file.files}
            ends = np.cumsum(parts["lengths"])
            begins = ends - parts["lengths"]
            rows = zip(parts["documents"].tolist(), parts["starts"].tolist(), begins, ends, strict=True)
            return [
                Window(document, parts["ids"][a:b], parts["special"][a:b], parts["nbytes"][a:b], start)
                for document, start, a, b in rows
            ]
        except Exception as error:  # a damaged archive can fail in any way
            raise damaged(path, error) from error

    def early(self) -> dict[int, int]:
        """Chunk -> the positions in front of it, for those that begin within the first FIRST_POSITIONS."""
        found: dict[int, int] = {}
        before = 0
        for number in range(self.chunks):
            if before >= FIRST_POSITIONS:
                break
            found[number] = before
            before += sum(len(window.ids) for window in self.chunk(number))
        return found

    def documents_of(self, chunks: range) -> range:
        """The numbers of the documents in these successive chunks."""
        end = self.firsts[chunks.stop] if chunks.stop < self.chunks else len(self.domains)
        return range(self.firsts[chunks.start], end)


def early_windows(windows: Iterable[Window], before: int = 0) -> list[Window]:
    """Of successive windows with `before` positions in front, those that begin within the first FIRST_POSITIONS."""
    found = []
    for window in windows:
        if before >= FIRST_POSITIONS:
            break
        found.append(window)
        before += len(window.ids)
    return found


def write_spool(
    folder: Path,
    documents: Iterable[tuple[Document, list[Window]]],
    context: int,
    has_bytes: bool,
    rows: int,
    passes: int = 1,
    left_out: Callable[[], int] = lambda: 0,
) -> Spool:
    """Write windows as they come.

    rows: the size of the vocabulary. passes: forward passes that will be made over each window. left_out: how many
    records had no text, asked once all are read.
    """
    spool = Spool(folder, has_bytes=has_bytes, frequencies=np.zeros(rows, dtype=np.int64))
    pending: list[Window] = []
    waiting = 0
    for document, windows in documents:
        _note(spool, document, windows)
        pending += windows
        waiting += sum(len(window.ids) for window in windows)
        if waiting >= max(CHUNK_POSITIONS * min(_CHUNK_PASSES, passes) // passes, _CONTEXTS * context):
            _write_chunk(spool, pending)
            pending, waiting = [], 0
    if pending:
        _write_chunk(spool, pending)
    spool.left_out = left_out()
    meta = {**vars(spool), "frequencies": spool.frequencies.tolist()}
    meta.pop("folder")
    with written(folder / _META):
        seals.write(folder / _META, json.dumps(meta, default=dict).encode())
    return spool


def read_spool(folder: Path) -> Spool | None:
    """The spool that lies there, if it was finished."""
    if not (folder / _META).is_file():
        return None
    try:
        meta = json.loads(seals.read(folder / _META))
        frequencies = np.asarray(meta.pop("frequencies"), dtype=np.int64)
        counts = [(tokens, nbytes) for tokens, nbytes in meta.pop("counts")]
        return Spool(folder, **meta, counts=counts, frequencies=frequencies)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(folder / _META, error) from error


def _note(spool: Spool, document: Document, windows: list[Window]) -> None:
    tokens = nbytes = 0
    for window in windows:
        counted = window.counted
        tokens += int(counted.sum())
        nbytes += int(window.nbytes[1:][counted].sum())
        np.add.at(spool.frequencies, window.ids[1:][counted], 1)
        spool.positions += len(window.ids)
    spool.domains.append(document.domain)
    spool.labels.append(dict(document.labels))
    spool.digests.append(hashlib.sha256(document.content()).hexdigest()[:16])
    if document.ids is not None:
        spool.has_bytes, spool.tokenized = False, True
    spool.counts.append((tokens, nbytes))
    spool.tokens += tokens


def _write_chunk(spool: Spool, windows: list[Window]) -> None:
    path = spool.folder / f"windows-{spool.chunks:06d}.npz"
    with written(path), seals.writing(path) as file:
        np.savez(
            file,
            ids=np.concatenate([w.ids for w in windows]).astype(np.int32),
            special=np.concatenate([w.special for w in windows]),
            nbytes=np.concatenate([w.nbytes for w in windows]).astype(np.int32),
            lengths=np.asarray([len(w.ids) for w in windows], dtype=np.int64),
            documents=np.asarray([w.document for w in windows], dtype=np.int64),
            starts=np.asarray([w.start for w in windows], dtype=np.int64),
        )
    spool.firsts.append(windows[0].document)
    spool.chunks += 1


def all_windows(spool: Spool) -> Iterator[Window]:
    """Every window, in the order of the text."""
    for number in range(spool.chunks):
        yield from spool.chunk(number)
