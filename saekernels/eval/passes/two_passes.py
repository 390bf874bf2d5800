"""The passes of an evaluation over the spooled text, chunk by chunk, with progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from saekernels.eval.passes.left import SiteNorms
from saekernels.eval.passes.moments import Collector
from saekernels.eval.passes.runner import Means, Runner, Sums
from saekernels.eval.store.document_sums import Journal
from saekernels.eval.store.ranks import Ranks
from saekernels.eval.store.resumable import Pass
from saekernels.eval.store.run_folder import Workspace
from saekernels.eval.store.window_files import Spool, early_windows
from saekernels.eval.sums.accumulate import DocumentSums
from saekernels.eval.text.batches import Batch, batches
from saekernels.eval.text.strata import Strata, make_strata
from saekernels.eval.text.windows import Window

Progress = Callable[[int, int], None]


class Advance:
    """Counts positions towards a total, and tells the caller."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, positions: int) -> None:
        """So many more positions have been through a pass."""
        self.done += positions
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


class Work:
    """The two passes over the spooled text, or over this process's share of it.

    leave_first: positions of each window that are never touched. passes: how many forward passes are expected in all;
    progress is told in tokens times these, and keeps to them. A process tells its own share's, scaled to the whole.
    """

    def __init__(
        self,
        workspace: Workspace,
        spool: Spool,
        ranks: Ranks,
        batch_size: int,
        context: int,
        passes: int,
        progress: Progress | None,
        leave_first: int = 0,
    ) -> None:
        self.workspace, self.spool, self.ranks = workspace, spool, ranks
        self.batch_size, self.context, self.leave_first = batch_size, context, leave_first
        self.early = spool.early()
        self.strata: Strata = make_strata(spool.frequencies, context)
        self.started = time.perf_counter()
        self.total = spool.positions * passes
        self.progress = progress or (lambda done, total: None)

    def look(self, norms: SiteNorms) -> None:
        """The medians of the norms at each site of the clean model, on the first FIRST_POSITIONS of the text."""

        def step(block: int, chunk: int) -> None:
            if chunk not in self.early:
                return
            for batch in self.batches(early_windows(self.spool.chunk(chunk), self.early[chunk])):
                norms.add(batch)

        Pass(self.workspace, "norms", self.spool.chunks, norms, self.ranks).run(step)

    def collect(self, collector: Collector) -> None:
        """The means and moments of the clean model."""
        work = Pass(self.workspace, "moments", self.spool.chunks, collector, self.ranks)
        tell = self.teller(work, 0, self.spool.positions)

        def step(block: int, chunk: int) -> None:
            windows = self.spool.chunk(chunk)
            positions = sum(len(window.ids) for window in windows)
            for batch in self.batches(windows):
                collector.add(batch, count_active=chunk in self.early)
                tell(batch.positions / positions)
            collector.flush()

        work.run(step)

    def measure(self, runner: Runner, means: Means, sums: Sums) -> Journal:
        """All runs; figures per document go to the journal."""
        columns = 2 + len(runner.plan.columns)
        journal = Journal(self.spool, self.strata.cells, columns)
        work = Pass(self.workspace, "figures", self.spool.chunks, sums, self.ranks)
        tell = self.teller(work, self.spool.positions, self.total - self.spool.positions)
        passes = runner.passes()

        def step(block: int, chunk: int) -> None:
            windows = self.spool.chunk(chunk)
            held = self.spool.documents_of(range(chunk, chunk + 1))
            documents = DocumentSums(held.start, len(held), self.strata, columns - 2)
            positions = sum(len(window.ids) for window in windows)
            for batch in self.batches(windows):
                part = batch.positions / positions / passes
                runner.run(batch, means, documents, sums, partial(tell, part))
            if self.ranks.writes:
                journal.write(block, chunk, documents.sums.numpy())

        work.run(step, ended=journal.join)
        self.progress(self.total, self.total)
        return journal

    def batches(self, windows: Sequence[Window]) -> Iterator[Batch]:
        """Batches of these windows."""
        return batches(windows, self.batch_size, self.context, self.leave_first)

    def teller(self, work: Pass, before: int, tokens: int) -> Callable[[float], None]:
        """tell(part of a chunk that was done): progress of a pass that is worth `tokens`, after `before` others."""
        own = -(-self.spool.chunks // self.ranks.count)
        done = float(max(0, own - work.left))

        def tell(part: float) -> None:
            nonlocal done
            done += part
            self.progress(before + int(tokens * min(1.0, done / max(1, own))), self.total)

        return tell
