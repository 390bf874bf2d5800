"""evaluate_replacement(): what a model does when several layers are replaced together, over a distribution of text."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from saekernels.crosslayer.crosscoder import Crosscoder
from saekernels.errors import InputError
from saekernels.eval.arguments import check_choices, check_numbers, check_tokenizer
from saekernels.eval.circumstances import name_of
from saekernels.eval.passes.calls import eval_mode, module_in, token_rows, trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Progress, Work
from saekernels.eval.store import fingerprints as identity
from saekernels.eval.store.provenance import provenance
from saekernels.eval.store.ranks import Ranks
from saekernels.eval.store.run_folder import open_workspace
from saekernels.eval.store.window_files import Spool, read_spool, write_spool
from saekernels.eval.studies.crosslayer import accounting
from saekernels.eval.studies.crosslayer.heads import Heads
from saekernels.eval.studies.crosslayer.result import Measured, result
from saekernels.eval.studies.crosslayer.study import EVERY, Study, named_domains
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.eval.text.documents import Document, check_documents, check_domains, digest
from saekernels.eval.text.sources import skipped_in, source
from saekernels.eval.text.windows import Tokens, chosen, context_of
from saekernels.parallel.devices import input_device
from saekernels.splice.leave import Leave

# Of the files of a checkpoint folder.
LAYOUT = 2


def evaluate_replacement(
    model: Any,
    tokenizer: Any,
    replacement: Any,
    documents: Iterable[Document],
    *,
    sites: Sequence[str] | None = None,
    beside: Any = None,
    domain: str | Sequence[str] | None = None,
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
    before: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Replace all layers of a dictionary together and compare the model with itself; JSON-ready.

    docs/explanation/crosslayer.md defines the runs and the figures. Every other document of a domain is fitted on
    (means, affine maps), the rest are measured. Results do not depend on `batch_size`. Memory: beside model and
    dictionary two activations [B, S, d] per layer, and for the affine maps (d_in^2 + d_in * d_out) doubles, times one
    more than there are domains to fit on: d_in and d_out of all layers together where these read no more than 4,096
    numbers, else of each layer, and once (m + d_in) * (m + d_in + d_out) more of each, with m at most 1,024.

    Args:
        model, tokenizer, tokens, batch_size, context, bootstrap, seed, bos, model_name, leave_first, leave_norm,
            checkpoint, progress: as of `evaluate`.
        replacement: a `CrossLayerTranscoder`, a `Crosscoder` of layers of this model, or a mapping from site to
            transcoder (`SAE`), in the model's order. A crosscoder has no joint run, as it writes before it has read
            all: its codes are those of clean passes, put in everywhere and at each layer alone.
        sites: of a cross-layer transcoder or crosscoder whose files do not say them.
        beside: another such dictionary, whose joint run is compared with, paired by document.
        domain: one or several that maps are fitted on, and latents selected on, alone, to be measured everywhere: three
            runs for each. "all": each that has two documents; default the one with the most text.
        affine: whether affine maps are fitted and run.
        sources: also replace the first layers alone, one more each time, and switch off the codes of each layer in
            turn: 2 L - 1 runs. Not of what has no joint run.
        before: told in a sentence how many passes there will be, before they are made.

    Raises InputError (a ValueError) for sites that are unknown, in another order than the model's, or run twice, for
    widths that do not fit, a crosscoder of several models or `beside`, a domain without documents to fit and measure,
    too little text, a checkpoint of another evaluation, and numbers out of range; TypeError for an argument of the
    wrong kind.
    """
    model = module_in(model)
    check_tokenizer(tokenizer)
    check_documents(documents)
    check_numbers(tokens=tokens, batch_size=batch_size, context=context, bootstrap=bootstrap, seed=seed)
    check_choices(bos, model_name, None)
    if isinstance(documents, Sequence):
        check_domains([document.domain for document in documents], named_domains(domain))
    subject = _subject(replacement, sites)
    other = None if beside is None else Subject("beside", beside)
    if other is not None and not other.causal:
        raise InputError(f"beside: a {other.kind} cannot run in a pass, as the dictionary beside does")
    if sources and not subject.causal:
        raise InputError(f"sources: the codes of a {subject.kind} are of all layers at once; none can be switched off")
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
        "domain": domain if domain is None or isinstance(domain, str) else list(domain),
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
        many = 8 if domain == EVERY else 1 if domain is None or isinstance(domain, str) else len(domain)
        most = 17 + 3 * many + (2 * sources if subject.causal else 1) * len(subject.sites)
        spool = _spooled(workspace.folder, documents, cutter, tokens, seed, rows, most)
        study = Study(model, head, subject, other, spool, rule, domain, affine)
        names = study.names(sources)
        if before is not None:
            before(study.cost(names))
        work = Work(workspace, spool, Ranks(), batch_size, context, 2 + study.twice + len(names), progress, rule.first)
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
                "passes": 2 + study.twice + len(names),
                "seconds": round(time.perf_counter() - work.started, 3),
                **provenance(model),
            },
        }


def _subject(replacement: Any, sites: Sequence[str] | None) -> Subject:
    if isinstance(replacement, Crosscoder):
        return Heads("replacement", replacement, sites)
    return Subject("replacement", replacement, sites)


def _check_order(model: Any, head: Head, subject: Subject | None, ids: torch.Tensor, batch_size: int) -> None:
    if subject is None:
        return
    order = try_sites(model, head.body, subject.places(), ids, batch_size)
    met = sorted(order, key=lambda site: order[site])
    if subject.causal and met != list(subject.sites):
        raise InputError(f"{subject.name}: its layers are at {list(subject.sites)}, but the model runs them as {met}")


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
