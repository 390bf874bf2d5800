"""evaluate(): what splicing SAEs into a language model costs over a distribution of text."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from saekernels.eval.arguments import check_choices, check_numbers, check_tokenizer, given_saes
from saekernels.eval.circumstances import (
    data_notes,
    head_notes,
    left_facts,
    left_notes,
    name_of,
    origin_notes,
    run_facts,
)
from saekernels.eval.measure import Wanted, measure
from saekernels.eval.passes.calls import eval_mode, module_in, token_rows, trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.left import rule_text
from saekernels.eval.passes.plan import BASELINES, check_baselines, make_plan
from saekernels.eval.passes.runner import Runner
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Progress, Work
from saekernels.eval.report.paired import paired_part
from saekernels.eval.report.report import Report
from saekernels.eval.store import fingerprints as identity
from saekernels.eval.store.ranks import Ranks
from saekernels.eval.store.run_folder import open_workspace
from saekernels.eval.store.window_files import Spool, read_spool, write_spool
from saekernels.eval.summarise import documents_table, summarise
from saekernels.eval.text.documents import Document, check_documents, digest
from saekernels.eval.text.sources import skipped_in, source
from saekernels.eval.text.windows import MASK, Tokens, chosen, context_of
from saekernels.parallel.devices import input_device
from saekernels.sae.module import SAE
from saekernels.splice.contradictions import OriginWarning
from saekernels.splice.leave import Leave

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Of the files of a checkpoint folder.
LAYOUT = 3


def evaluate(
    model: Any,
    tokenizer: Any,
    saes: Mapping[str, SAE | nn.Module | str | os.PathLike[str]],
    documents: Iterable[Document],
    *,
    tokens: int | None = None,
    batch_size: int = 8,
    context: int | None = None,
    baselines: Sequence[str] = BASELINES,
    cumulative: bool = True,
    bootstrap: int = 2000,
    seed: int = 0,
    bos: bool | None = None,
    model_name: str | None = None,
    reuse_layers: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    mesh: DeviceMesh | None = None,
    encoder_ids: Sequence[int] | None = None,
    leave_first: int = 0,
    leave_norm: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare the model with itself when SAEs replace its activations: each alone, the first l sites, and all together.

    docs/explanation/evaluation.md defines every figure. Results depend on the documents, `tokens`, `context`,
    `bos` and `seed`, but not on `batch_size`. Memory does not grow with the text: windows and sums per document are
    kept in files.

    Args:
        model: any causal torch.nn.Module that gives logits [B, S, V] for token ids [B, S] (itself, as `.logits`, or in
            a tuple or dict), or an object around one; on its device and in its dtype. `Report.run` says how its head
            was taken: "linear", or slower, with the same figures, "module" or "whole".
        tokenizer: the model's `transformers` tokenizer; bits per byte need a fast one. None where every document has
            its `ids`: no token is then special.
        saes: site -> SAE, sites as in `saekernels.splice`, and so what may stand in an SAE's place (a path, a hub id,
            another tool's object); "SITE#LABEL" for several SAEs of one site.
        documents: a sequence (shuffled by `seed`) or any iterable (read in its own order, no further than needed).
        tokens: stop once this many predictions count; None for all documents.
        batch_size: windows per batch; shorter windows share a batch up to batch_size * context positions.
        context: window length in tokens, what the tokenizer puts in front included; default the model's, at most 2048.
        baselines: what each splice is compared with: "zero" and "mean" ablation, "random" errors of the SAE's own
            norm, and "pca", the best affine probe of the rank of the SAE's L0.
        cumulative: also splice the first l sites, in the model's order, for every l.
        bootstrap: replicates for the 95 % intervals; 0 for none.
        seed: for the choice of documents, random errors and the bootstrap.
        bos: None for the tokenizer's own habit, True to put its BOS before every window, False for nothing in front.
        model_name: the name in the report; default the one the model was loaded by.
        reuse_layers: compute what runs have in common once per batch, where a trial run shows that this changes no
            bit; keeps up to two [B, S, d] activations per site. `Report.run` says whether it was done.
        checkpoint: a folder for the state of the run; the same call with the same folder goes on where a killed run
            stopped, with the same result.
        mesh: the processes of torch.distributed that share the work, all of which call this (docs/how-to/scale.md):
            those along its dimension "data" share out the documents, those along any other run the same ones in step,
            for SAEs or models that are spread over them. The report is the same in every process, and its sums per
            document have the bits of one process alone. Only the first process reads `documents`; all must see the
            folder `checkpoint`, or its temporary one.
        encoder_ids: for an encoder-decoder, the tokens that its encoder reads in every pass; the documents are then its
            decoder's.
        leave_first: no run touches the first so many positions of each window, what the tokenizer puts in front
            included: attention sinks, whose activations are like no others.
        leave_norm: nor positions where the norm of what a site reads, or of what is replaced there, exceeds this many
            times its median, both in the clean run, the median over the first text. Predictions count there as before.
        progress: called as progress(done, total), in tokens times forward passes; `saekernels.progress_bar` gives one.

    Raises:
        InputError (a ValueError): an unknown site, an SAE of the wrong width, a tokenizer that does not fit, no data, a
            model without logits of every position or that is not causal, a checkpoint of another evaluation, or an
            argument out of range.
        TypeError: an argument of the wrong kind.
        RankLostError: another process of the mesh has ended. With `checkpoint`, the same call goes on where it was,
            with any number of processes.
    """
    ranks = Ranks(mesh)
    model = module_in(model)
    saes = given_saes(saes, model)
    check_tokenizer(tokenizer)
    if ranks.first:
        check_documents(documents)
    check_numbers(tokens=tokens, batch_size=batch_size, context=context, bootstrap=bootstrap, seed=seed)
    check_choices(bos, model_name, encoder_ids)
    check_baselines(baselines)
    rule = Leave(leave_first, leave_norm)
    context = context_of(model, tokenizer, context)
    head = ranks.together(lambda: find_head(model, encoder_ids, context))
    rows = token_rows(model, head.vocabulary)
    cutter = Tokens(tokenizer, context, bos=bos, rows=rows)
    device = input_device(model)
    config = {
        "layout": LAYOUT,
        "model": identity.of_model(model),
        "tokenizer": identity.of_tokenizer(tokenizer),
        "saes": identity.of_saes(saes),
        "tokens": tokens,
        "context": context,
        "baselines": sorted(baselines),
        "cumulative": cumulative,
        "seed": seed,
        "prefix": [int(i) for i in cutter.prefix],
        **({} if encoder_ids is None else {"encoder_ids": list(encoder_ids)}),
        **({"leave": [rule.first, rule.norm]} if rule else {}),
        "documents": digest(documents) if ranks.first and isinstance(documents, Sequence) else source(documents),
    }
    wanted = Wanted(tokens, context, tuple(baselines), cumulative, seed, reuse_layers)
    modes = (eval_mode(model, *saes.values()), torch.inference_mode(), _noted_once())
    with modes[0], modes[1], modes[2], open_workspace(checkpoint, config, ranks) as workspace:
        probe = trial_ids(model, rows, context)
        runner = Runner(model, head, saes, device, seed, rule)
        order, tried = ranks.together(lambda: _tried(runner, probe, batch_size))
        passes = 2 + len(make_plan(list(saes), order, dict.fromkeys(saes, 0), baselines, cumulative).runs)
        spool = ranks.once(lambda: _spooled(workspace.folder, documents, cutter, wanted, rows, passes))
        work = Work(workspace, spool, ranks, batch_size, context, passes, progress, rule.first)
        plan, collector, sums, journal = measure(work, runner, cutter, wanted, order, probe)

        def report() -> Report:
            records = journal.read()
            figures = summarise(plan, saes, sums, records, spool, work.strata, bootstrap, seed)
            rows, everything, curve, notes = figures
            table = documents_table(plan, records, spool)
            paired = paired_part(table, bootstrap, seed)
            return Report(
                model=model_name or name_of(model),
                tokens=spool.tokens,
                documents=len(spool.domains),
                nbytes=int(spool.per_document()[:, 1].sum()) if spool.has_bytes else None,
                sites=rows,
                all_sites=everything,
                cumulative=curve,
                documents_table=table,
                extras={"paired": paired} if paired else {},
                context=context,
                prefix=[int(i) for i in cutter.prefix],
                mask=MASK + rule_text(rule),
                seed=seed,
                bootstrap=bootstrap,
                notes=[
                    *data_notes(spool, tokens),
                    *head_notes(model, head),
                    *tried,
                    *origin_notes(model, saes, cutter),
                    *left_notes(collector),
                    *notes,
                ],
                run={**run_facts(runner, work, device), **left_facts(collector)},
            )

        return ranks.once(report)


def _tried(runner: Runner, probe: torch.Tensor, batch_size: int) -> tuple[dict[str, int], list[str]]:
    """A trial of the head and of every site on ids [1, S]: site -> when the model comes to it; and notes."""
    told = check_head(runner.model, runner.head, probe)
    order = try_sites(runner.model, runner.head.body, runner.saes, probe, batch_size)
    return order, [told] if told else []


def _spooled(
    folder: Path, documents: Iterable[Document], cutter: Tokens, wanted: Wanted, rows: int, passes: int
) -> Spool:
    """The text in windows; of a run that goes on, as it was written then."""
    return read_spool(folder) or write_spool(
        folder,
        chosen(documents, cutter, wanted.tokens, wanted.seed),
        wanted.context,
        cutter.has_bytes,
        rows,
        passes,
        lambda: skipped_in(documents),
    )


@contextlib.contextmanager
def _noted_once() -> Iterator[None]:
    """What splices warn of at every pass stands in the report's notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OriginWarning)
        yield
