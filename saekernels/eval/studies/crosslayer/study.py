"""The passes of a study over both halves of the text, and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from saekernels.errors import InputError
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.passes.left import SiteNorms
from saekernels.eval.passes.two_passes import Work
from saekernels.eval.store.document_sums import Journal
from saekernels.eval.store.resumable import Pass
from saekernels.eval.store.window_files import Spool, early_windows
from saekernels.eval.studies.crosslayer.fits import Fits
from saekernels.eval.studies.crosslayer.names import names_of, ranks_of
from saekernels.eval.studies.crosslayer.passes import Passes
from saekernels.eval.studies.crosslayer.runs import Runs
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.eval.studies.crosslayer.totals import Totals, columns_of
from saekernels.eval.sums.accumulate import DocumentSums
from saekernels.eval.text.slices import alternate
from saekernels.splice.leave import Leave


class Study:
    """The passes over both halves, and what they add up to."""

    def __init__(
        self,
        model: Any,
        head: Head,
        subject: Subject,
        beside: Subject | None,
        spool: Spool,
        rule: Leave,
        domain: str | None,
        affine: bool,
    ) -> None:
        self.subject, self.beside, self.spool = subject, beside, spool
        stands = {**({} if beside is None else beside.stands()), **subject.places()}
        self.left = SiteNorms(model, head, stands, rule)
        self.passes = Passes(self.left, subject, beside)
        self.half = alternate(spool.domains)
        self.domain = _domain(spool, self.half, domain)
        self.fits = Fits(subject, affine)
        self.ranks: dict[str, list[int]] = {}

    def names(self, sources: bool) -> list[str]:
        """The runs."""
        fits, domains = self.fits, len(set(self.spool.domains)) > 1
        return names_of(self.subject, self.beside, fits.affine, fits.across, domains, sources)

    def fit(self, work: Work) -> None:
        """Norms, moments and mean L0 of the clean model, on the half that is fitted on."""
        if self.left.rule.norm is not None:
            work.look(self.left)
        moments = Pass(work.workspace, "moments", self.spool.chunks, self.fits, work.ranks)
        tell = work.teller(moments, 0, self.spool.positions)

        def step(block: int, chunk: int) -> None:
            windows = [one for one in self.spool.chunk(chunk) if self.half[one.document]]
            early = work.early.get(chunk)
            counted = 0 if early is None else len(early_windows(windows, early))
            for part, count in ((windows[:counted], True), (windows[counted:], False)):
                for batch in work.batches(part):
                    inside = torch.tensor([self.spool.domains[one.document] == self.domain for one in batch.windows])
                    self.passes.fit(batch, inside, self.fits, count)
            self.fits.flush()
            tell(1.0)

        moments.run(step)
        if not self.fits.rows(None):
            raise InputError("data: no position of the half that is fitted on is replaced; leave fewer alone")

    def measure(self, work: Work, names: Sequence[str], seed: int) -> Any:
        """Every run on the other half; the sums per document."""
        self.ranks = ranks_of(self.subject, self.fits, names)
        runs = Runs(self.subject, self.beside, names, self.fits, self.ranks, seed)
        self.totals = self._totals(names)
        columns = len(columns_of(names))
        journal = Journal(self.spool, work.strata.cells, 2 + columns)
        figures = Pass(work.workspace, "figures", self.spool.chunks, self.totals, work.ranks)
        tell = work.teller(figures, self.spool.positions, work.total - self.spool.positions)

        def step(block: int, chunk: int) -> None:
            windows = [one for one in self.spool.chunk(chunk) if not self.half[one.document]]
            held = self.spool.documents_of(range(chunk, chunk + 1))
            documents = DocumentSums(held.start, len(held), work.strata, columns)
            positions = sum(len(one.ids) for one in windows)
            for batch in work.batches(windows):
                part = batch.positions / positions / (1 + len(names))
                self.passes.run(batch, runs, documents, self.totals, partial(tell, part))
            journal.write(block, chunk, documents.sums.numpy())

        figures.run(step, ended=journal.join)
        work.progress(work.total, work.total)
        return journal.read()

    def _totals(self, names: Sequence[str]) -> Totals:
        means = self.fits.means()
        sizes = [self.subject.layer(number).n_latents for number in self.subject.layers]
        kinds = ("joint", "teacher_forced", "drift") if self.subject.causal else ("teacher_forced",)
        all_sizes: Mapping[str, list[int]] = dict.fromkeys(kinds, sizes)
        centres: Mapping[str, list[torch.Tensor]] = dict.fromkeys(kinds, means)
        if self.subject.shared:
            all_sizes, centres = {**all_sizes, "shared": sizes[:1]}, {**centres, "shared": [torch.zeros(1)]}
        if self.beside is not None:
            own = [self.beside.layer(number).n_latents for number in self.beside.layers]
            zeros = [torch.zeros(d_out) for _, d_out in self.beside.widths()]
            all_sizes, centres = {**all_sizes, "beside": own}, {**centres, "beside": zeros}
        return Totals(all_sizes, centres, len(columns_of(names)))


def _domain(spool: Spool, half: Sequence[bool], wanted: str | None) -> str:
    """The domain that is inside: that one, or the one with the most text."""
    if all(half):
        raise InputError("data: every other document of a domain is fitted on and the rest measured; need two of one")
    if wanted is not None and (number := spool.domains.count(wanted)) < 2:
        raise InputError(f"domain: {wanted!r} has {number} documents here, need two or more")
    documents = Counter(spool.domains)
    counts: Counter[str] = Counter()
    for name, (tokens, _) in zip(spool.domains, spool.counts, strict=True):
        counts[name] += tokens if documents[name] > 1 else 0
    return wanted or max(counts, key=lambda name: counts[name])
