"""The sums of every document on disk: a file for each block of chunks while it is worked on, in the end one for all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import numpy as np

from saekernels.eval.store.resumable import blocks_of
from saekernels.eval.store.run_folder import damaged, written
from saekernels.eval.store.window_files import Spool
from saekernels.files import sealed as seals


class Journal:
    """Sums [documents, cells, columns] fp64, in the order of the documents.

    Processes write to files of their own, because one file that several hosts write is safe on few file systems.
    """

    def __init__(self, spool: Spool, cells: int, columns: int) -> None:
        self.spool = spool
        self.shape = (len(spool.domains), cells, columns)
        self.path = spool.folder / "documents.f64"
        self.blocks = blocks_of(spool.chunks)

    def write(self, block: int, chunk: int, sums: np.ndarray) -> None:
        """The records of a chunk's documents; over whatever is there."""
        path, chunks = self._part(block), self.blocks[block]
        skipped = self.spool.firsts[chunk] - self.spool.firsts[chunks.start]
        content = np.ascontiguousarray(sums, dtype=np.float64).tobytes()
        at = skipped * self._record + (chunk - chunks.start) * seals.SIZE
        if at > (path.stat().st_size if path.exists() else 0):
            raise damaged(path, "it is cut short or missing")
        with written(path), open(path, "r+b" if path.exists() else "wb") as file:
            file.seek(at)
            file.write(content + seals.seal(content))
            file.flush()
            os.fsync(file.fileno())

    def join(self) -> None:
        """Make the one file, when all blocks are written; once made it stays as it is."""
        if self.path.is_file():
            return
        with written(self.path), seals.writing(self.path) as whole:
            for block, chunks in enumerate(self.blocks):
                self._copy(block, chunks, whole)
        for block in range(len(self.blocks)):
            self._part(block).unlink(missing_ok=True)

    def read(self) -> np.ndarray:
        """All records, mapped into memory page by page."""
        needed = self.shape[0] * self._record
        try:
            found = seals.check(self.path)
        except (OSError, ValueError) as error:
            raise damaged(self.path, error) from error
        if found != needed:
            raise damaged(self.path, f"need {needed} bytes, got {found}")
        return np.memmap(self.path, dtype=np.float64, mode="r", shape=self.shape)

    def _copy(self, block: int, chunks: range, whole: IO[bytes]) -> None:
        """Append what the chunks of a block have written, each with its checksum."""
        path = self._part(block)
        if not path.is_file():
            raise damaged(path, "it is missing")
        with open(path, "rb") as part:
            for chunk in chunks:
                size = len(self.spool.documents_of(range(chunk, chunk + 1))) * self._record
                content = part.read(size)
                if part.read(seals.SIZE) != seals.seal(content):
                    raise damaged(path, "it is cut short or damaged (its checksum is another)")
                whole.write(content)

    @property
    def _record(self) -> int:
        return self.shape[1] * self.shape[2] * 8

    def _part(self, block: int) -> Path:
        return self.spool.folder / f"documents-{block}.f64"
