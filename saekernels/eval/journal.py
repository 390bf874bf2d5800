"""The sums of every document on disk: a file for each block of chunks while it is worked on, in the end one for all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from saekernels import atomic

from .blocks import blocks_of
from .spool import Spool
from .workspace import damaged, written


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
        path = self._part(block)
        skipped = self.spool.firsts[chunk] - self.spool.firsts[self.blocks[block].start]
        with written(path), open(path, "r+b" if path.exists() else "wb") as file:
            file.seek(skipped * self._record)
            file.write(np.ascontiguousarray(sums, dtype=np.float64).tobytes())
            file.flush()
            os.fsync(file.fileno())

    def join(self) -> None:
        """Make the one file, when all blocks are written; once made it stays as it is."""
        if self.path.is_file():
            return
        with written(self.path), atomic.writing(self.path) as whole:
            for block, chunks in enumerate(self.blocks):
                path, needed = self._part(block), len(self.spool.documents_of(chunks)) * self._record
                if not path.is_file() or path.stat().st_size != needed:
                    raise damaged(path, f"need {needed} bytes")
                with open(path, "rb") as part:
                    while piece := part.read(1 << 22):
                        whole.write(piece)
        for block in range(len(self.blocks)):
            self._part(block).unlink(missing_ok=True)

    def read(self) -> np.ndarray:
        """All records, mapped into memory page by page."""
        if not self.path.is_file() or self.path.stat().st_size != self.shape[0] * self._record:
            raise damaged(self.path, f"need {self.shape[0] * self._record} bytes")
        return np.memmap(self.path, dtype=np.float64, mode="r", shape=self.shape)

    @property
    def _record(self) -> int:
        return self.shape[1] * self.shape[2] * 8

    def _part(self, block: int) -> Path:
        return self.spool.folder / f"documents-{block}.f64"
