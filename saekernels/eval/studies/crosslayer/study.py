"""The passes of an evaluation of layers replaced together, and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from saekernels.display.numbers import counted
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
from saekernels.eval.text.documents import check_domains
from saekernels.eval.text.slices import alternate
from saekernels.splice.leave import Leave

EVERY = "all"
"""In place of a domain: each one that has two documents or more."""


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
        domain: str | Sequence[str] | None,
        affine: bool,
    ) -> None:
        self.subject, self.beside, self.spool = subject, beside, spool
        stands = {**({} if beside is None else beside.stands()), **subject.places()}
        self.left = SiteNorms(model, head, stands, rule)
        self.passes = Passes(self.left, subject, beside)
        self.half = alternate(spool.domains)
        self.fits = Fits(subject, affine, _domains(spool, self.half, domain))
        self.ranks: dict[str, list[int]] = {}

    def names(self, sources: bool) -> list[str]:
        """The runs."""
        fits = self.fits
        return names_of(self.subject, self.beside, fits.affine, fits.together, fits.domains, sources)

    def cost(self, names: Sequence[str]) -> str:
        """What the passes are, in a sentence."""
        fitted, measured = (
            sum(int(counts[0]) for counts, own in zip(self.spool.counts, self.half, strict=True) if own is half)
            for half in (True, False)
        )
        narrow = sum("@" in name for name in names)
        of = f", {narrow} of them for {counted(len(self.fits.domains), 'domain')} to fit or select on" if narrow else ""
        clean = f"{'2 passes' if self.twice else '1 pass'} over {counted(fitted, 'token')} to fit on"
        return (
            f"{clean}, {1 + len(names)} over {counted(measured, 'token')}: clean and {counted(len(names), 'run')}{of}"
        )

    @property
    def twice(self) -> bool:
        """Whether the half that is fitted on is passed over a second time."""
        return self.fits.sketch is not None

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
                    parts = [self.fits.part(self.spool.domains[one.document]) for one in batch.windows]
                    self.passes.fit(batch, torch.tensor(parts), self.fits, count)
            self.fits.flush()
            tell(1.0)

        moments.run(step)
        for domain in (None, *self.fits.domains):
            if not self.fits.rows(domain):
                where = "the half" if domain is None else f"the half of {domain!r}"
                raise InputError(f"data: no position of {where} that is fitted on is replaced; leave fewer alone")
        if self.twice:
            self._fit_earlier(work)

    def _fit_earlier(self, work: Work) -> None:
        earlier = self.fits.second()
        moments = Pass(work.workspace, "moments of earlier layers", self.spool.chunks, earlier, work.ranks)
        tell = work.teller(moments, self.spool.positions, self.spool.positions)

        def step(block: int, chunk: int) -> None:
            for batch in work.batches([one for one in self.spool.chunk(chunk) if self.half[one.document]]):
                self.passes.fit_earlier(batch, earlier)
            earlier.flush()
            tell(1.0)

        moments.run(step)

    def measure(self, work: Work, names: Sequence[str], seed: int) -> Any:
        """Every run on the other half; the sums per document."""
        self.ranks = ranks_of(self.subject, self.fits, names)
        runs = Runs(self.subject, self.beside, names, self.fits, self.ranks, seed)
        self.totals = self._totals(names)
        columns = len(columns_of(names))
        journal = Journal(self.spool, work.strata.cells, 2 + columns)
        figures = Pass(work.workspace, "figures", self.spool.chunks, self.totals, work.ranks)
        before = self.spool.positions * (1 + self.twice)
        tell = work.teller(figures, before, work.total - before)

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


def named_domains(wanted: str | Sequence[str] | None) -> Sequence[str]:
    """The domains that are asked for by their names."""
    if wanted is None or wanted == EVERY:
        return ()
    return [wanted] if isinstance(wanted, str) else wanted


def _domains(spool: Spool, half: Sequence[bool], wanted: str | Sequence[str] | None) -> list[str]:
    """The domains that something is fitted on alone: none where there is one domain."""
    if all(half):
        raise InputError("data: every other document of a domain is fitted on and the rest measured; need two of one")
    documents, tokens = Counter(spool.domains), Counter[str]()
    for name, (own, _) in zip(spool.domains, spool.counts, strict=True):
        tokens[name] += own if documents[name] > 1 else 0
    if wanted == EVERY:
        named = sorted(name for name, number in documents.items() if number > 1)
    elif wanted is None:
        named = [max(tokens, key=lambda name: tokens[name])]
    else:
        named = list(dict.fromkeys(named_domains(wanted)))
    check_domains(spool.domains, named)
    return named if len(documents) > 1 else []
