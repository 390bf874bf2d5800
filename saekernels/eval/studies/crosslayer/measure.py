"""evaluate_replacement(): what a model does when several layers are replaced together, over a distribution of text."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saekernels.errors import InputError
from saekernels.eval.arguments import check_choices, check_numbers, check_tokenizer
from saekernels.eval.circumstances import name_of
from saekernels.eval.passes.calls import eval_mode, module_in, token_rows, trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.passes.left import SiteNorms
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Progress, Work
from saekernels.eval.store import fingerprints as identity
from saekernels.eval.store.document_sums import Journal
from saekernels.eval.store.provenance import provenance
from saekernels.eval.store.ranks import Ranks
from saekernels.eval.store.resumable import Pass
from saekernels.eval.store.run_folder import open_workspace
from saekernels.eval.store.window_files import Spool, early_windows, read_spool, write_spool
from saekernels.eval.studies.crosslayer import accounting
from saekernels.eval.studies.crosslayer.fits import Fits
from saekernels.eval.studies.crosslayer.passes import Passes
from saekernels.eval.studies.crosslayer.result import Measured, result
from saekernels.eval.studies.crosslayer.runs import Runs, names_of, ranks_of
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.eval.studies.crosslayer.totals import Totals, columns_of
from saekernels.eval.sums.accumulate import DocumentSums
from saekernels.eval.text.documents import Document, check_documents, digest
from saekernels.eval.text.slices import alternate
from saekernels.eval.text.sources import skipped_in, source
from saekernels.eval.text.windows import Tokens, chosen, context_of
from saekernels.parallel.devices import input_device
from saekernels.splice.leave import Leave

# Of the files of a checkpoint folder.
LAYOUT = 1


def evaluate_replacement(
    model: Any,
    tokenizer: Any,
    replacement: Any,
    documents: Iterable[Document],
    *,
    sites: Sequence[str] | None = None,
    beside: Any = None,
    domain: str | None = None,
    affine: bool = True,
    sources: bool = False,
    tokens: int | None = None,
    batch_size: int = 8,
    context: int | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    bos: bool | None = None,
    model_name: str | None = None,
    leave_first: int = 0,
    leave_norm: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Replace all layers of a dictionary together and compare the model with itself; JSON-ready.

    docs/explanation/crosslayer.md defines the runs and the figures. Every other document of a domain is fitted on
    (means, affine maps), the rest are measured. Results do not depend on `batch_size`. Memory: beside model and
    dictionary two activations [B, S, d] per layer, and (d_in^2 + d_in * d_out) doubles per layer for the affine maps;
    for those across layers, which are left out where the layers together read more than 4,096 numbers, as many for all
    layers together.

    Args:
        model, tokenizer, tokens, batch_size, context, bootstrap, seed, bos, model_name, leave_first, leave_norm,
            checkpoint, progress: as of `evaluate`.
        replacement: a `CrossLayerTranscoder`, or a mapping from site to transcoder (`SAE`), in the model's order.
        sites: of a cross-layer transcoder whose files do not say them.
        beside: another such dictionary, whose joint run is compared with, paired by document.
        domain: that whose affine maps are measured elsewhere; default the one with the most text.
        affine: whether affine maps are fitted and run.
        sources: also switch off the codes of each layer in turn: one run for each.

    Raises InputError (a ValueError) for sites that are unknown, in another order than the model's, or run twice, for
    widths that do not fit, for a domain without documents to fit and measure, for too little text, a checkpoint of
    another evaluation, and numbers out of range; TypeError for an argument of the wrong kind.
    """
    model = module_in(model)
    check_tokenizer(tokenizer)
    check_documents(documents)
    check_numbers(tokens=tokens, batch_size=batch_size, context=context, bootstrap=bootstrap, seed=seed)
    check_choices(bos, model_name, None)
    subject = Subject("replacement", replacement, sites)
    other = None if beside is None else Subject("beside", beside)
    context = context_of(model, tokenizer, context)
    head = find_head(model, None, context)
    rows = token_rows(model, head.vocabulary)
    cutter = Tokens(tokenizer, context, bos=bos, rows=rows)
    rule = Leave(leave_first, leave_norm)
    config = {
        "layout": LAYOUT,
        "study": "crosslayer",
        "model": identity.of_model(model),
        "tokenizer": identity.of_tokenizer(tokenizer),
        "saes": {**subject.fingerprints(), **({} if other is None else other.fingerprints())},
        "tokens": tokens,
        "context": context,
        "domain": domain,
        "affine": affine,
        "sources": sources,
        "seed": seed,
        "prefix": [int(i) for i in cutter.prefix],
        "leave": [rule.first, rule.norm],
        "documents": digest(documents) if isinstance(documents, Sequence) else source(documents),
    }
    modules = [subject.module, *([] if other is None else [other.module])]
    with eval_mode(model, *modules), torch.inference_mode(), open_workspace(checkpoint, config) as workspace:
        ids = trial_ids(model, rows, context)
        told = check_head(model, head, ids)
        for one in (subject, other):
            _check_order(model, head, one, ids, batch_size)
        most = 20 + sources * len(subject.sites)
        spool = _spooled(workspace.folder, documents, cutter, tokens, seed, rows, most)
        study = _Study(model, head, subject, other, spool, rule, domain, affine)
        names = study.names(sources)
        work = Work(workspace, spool, Ranks(), batch_size, context, 2 + len(names), progress, rule.first)
        study.fit(work)
        records = study.measure(work, names, seed)
        found = Measured(
            subject=subject,
            beside=other,
            spool=spool,
            names=names,
            records=records,
            totals=study.totals,
            fits=study.fits,
            ranks=study.ranks,
            domain=study.domain,
            half=study.half,
            strata=work.strata,
            replaced=accounting.replaced(model, head, subject.sites, ids),
        )
        return {
            "model": model_name or name_of(model),
            "context": context,
            **result(found, bootstrap, seed, rule, [told] if told else [], tokens),
            "run": {
                "device": str(input_device(model)),
                "dtype": str(head.dtype).removeprefix("torch."),
                "head": head.kind,
                "batch_size": batch_size,
                "passes": 2 + len(names),
                "seconds": round(time.perf_counter() - work.started, 3),
                **provenance(model),
            },
        }


class _Study:
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
        stands = {**({} if beside is None else beside.stands()), **subject.stands()}
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
        kinds = ("joint", "teacher_forced", "drift")
        all_sizes: Mapping[str, list[int]] = dict.fromkeys(kinds, sizes)
        centres: Mapping[str, list[torch.Tensor]] = dict.fromkeys(kinds, means)
        if self.beside is not None:
            own = [self.beside.layer(number).n_latents for number in self.beside.layers]
            zeros = [torch.zeros(d_out) for _, d_out in self.beside.widths()]
            all_sizes, centres = {**all_sizes, "beside": own}, {**centres, "beside": zeros}
        return Totals(all_sizes, centres, len(columns_of(names)))


def _check_order(model: Any, head: Head, subject: Subject | None, ids: torch.Tensor, batch_size: int) -> None:
    if subject is None:
        return
    order = try_sites(model, head.body, subject.stands(), ids, batch_size)
    met = sorted(order, key=lambda site: order[site])
    if met != list(subject.sites):
        raise InputError(f"{subject.name}: its layers are at {list(subject.sites)}, but the model runs them as {met}")


def _domain(spool: Spool, half: Sequence[bool], wanted: str | None) -> str:
    """The domain that is inside: that one, or the one with the most text."""
    if all(half):
        raise InputError("data: every other document of a domain is fitted on and the rest measured; need two of one")
    counts = dict.fromkeys(spool.domains, 0)
    for name, (tokens, _) in zip(spool.domains, spool.counts, strict=True):
        counts[name] += tokens
    chosen_domain = wanted or max(counts, key=lambda name: counts[name])
    if spool.domains.count(chosen_domain) < 2:
        number = spool.domains.count(chosen_domain)
        raise InputError(f"domain: {chosen_domain!r} has {number} documents here, need two or more")
    return chosen_domain


def _spooled(
    folder: Path, documents: Iterable[Document], cutter: Tokens, wanted: int | None, seed: int, rows: int, passes: int
) -> Spool:
    """The text in windows; of a run that goes on, as it was written then."""
    return read_spool(folder) or write_spool(
        folder,
        chosen(documents, cutter, wanted, seed),
        cutter.context,
        cutter.has_bytes,
        rows,
        passes,
        lambda: skipped_in(documents),
    )
