"""The two passes of an evaluation over the spooled text, chunk by chunk, with progress."""

from __future__ import annotations

import time
from collections.abc import Callable

from .accumulate import DocumentSums
from .batches import batches
from .collect import Collector
from .runs import Means, Runner, Sums
from .spool import Spool
from .strata import Strata, make_strata
from .workspace import Journal, Workspace

Progress = Callable[[int, int], None]


class Work:
    """The two passes over the spooled text.

    passes: how many forward passes are expected in all; progress is told in tokens times these, and keeps to them.
    """

    def __init__(
        self,
        workspace: Workspace,
        spool: Spool,
        batch_size: int,
        context: int,
        passes: int,
        progress: Progress | None,
    ) -> None:
        self.workspace, self.spool, self.batch_size, self.context = workspace, spool, batch_size, context
        self.strata: Strata = make_strata(spool.frequencies, context)
        self.started = time.perf_counter()
        self.total = spool.positions * passes
        self.progress = progress or (lambda done, total: None)

    def collect(self, collector: Collector) -> None:
        """The means and moments of the clean model."""
        chunks = self.spool.chunks
        done = self.workspace.done("moments") * self.spool.positions // max(1, chunks)

        def step(chunk: int) -> None:
            nonlocal done
            for batch in batches(self.spool.chunk(chunk), self.batch_size, self.context):
                collector.add(batch, count_active=chunk == 0)
                done += batch.positions
                self.progress(min(done, self.spool.positions), self.total)

        self.workspace.stages("moments", chunks, collector, step)

    def measure(self, runner: Runner, means: Means, sums: Sums) -> Journal:
        """All runs; figures per document go to the journal."""
        columns = 2 + len(runner.plan.columns)
        shape = (len(self.spool.domains), self.strata.cells, columns)
        journal = Journal(self.workspace.folder / "documents.f64", shape)
        share = self.workspace.done("figures") / self.spool.chunks
        passes, left = runner.passes(), self.total - self.spool.positions

        def step(chunk: int) -> None:
            nonlocal share
            windows = self.spool.chunk(chunk)
            first = windows[0].document
            documents = DocumentSums(first, windows[-1].document - first + 1, self.strata, columns - 2)
            for batch in batches(windows, self.batch_size, self.context):

                def advance(part: float = batch.positions / self.spool.positions / passes) -> None:
                    nonlocal share
                    share += part
                    self.progress(self.spool.positions + min(left, int(share * left)), self.total)

                runner.run(batch, means, documents, sums, advance)
            journal.write(first, documents.sums.numpy())

        self.workspace.stages("figures", self.spool.chunks, sums, step)
        self.progress(self.total, self.total)
        return journal
