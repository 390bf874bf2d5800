"""evaluate(): what splicing SAEs into a language model costs over a distribution of text."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from saekernels.sae import SAE

from .batches import Batch, batches
from .checks import check_choices, check_documents, check_numbers, check_saes, check_tokenizer
from .documents import Document
from .errors import InputError
from .head import check_head, find_head
from .report import Report
from .runs import Runner, make_targets, passes
from .summary import summarise
from .windows import MASK, Selection, Tokens, default_context, model_limit, select
from .wording import counted

Progress = Callable[[int, int], None]
_PROBE_TOKENS = 16


def evaluate(
    model: Any,
    tokenizer: Any,
    saes: Mapping[str, SAE],
    documents: Iterable[Document],
    *,
    tokens: int | None = None,
    batch_size: int = 8,
    context: int | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    bos: bool | None = None,
    model_name: str | None = None,
    reuse_layers: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Compare the model with itself when SAEs replace its activations: each site alone, and all together.

    docs/evaluation.md defines every figure. Results depend on the documents, `tokens`, `context`, `bos` and `seed`, but
    not on `batch_size`.

    Args:
        model: a `transformers` causal LM or a TransformerLens HookedTransformer, on its device and in its dtype.
        tokenizer: the model's `transformers` tokenizer; bits per byte need a fast one.
        saes: site -> SAE, sites as in `saekernels.splice.splice`.
        documents: a sequence (shuffled by `seed`) or any iterable (read in its own order, no further than needed).
        tokens: stop once this many predictions count; None for all documents.
        batch_size: windows per batch; shorter windows share a batch up to batch_size * context positions.
        context: window length in tokens, what the tokenizer puts in front included; default the model's, at most 2048.
        bootstrap: replicates for the 95 % intervals; 0 for none.
        seed: for the choice of documents and the bootstrap.
        bos: None for the tokenizer's own habit, True to put its BOS before every window, False for nothing in front.
        model_name: the name in the report; default the one the model was loaded by.
        reuse_layers: compute the layers before a run's first site once per batch, where a trial run shows that this
            changes no bit; keeps one [B, S, d] activation per site. `Report.run` says whether it was done.
        progress: called as progress(done, total), in tokens times forward passes.

    Raises:
        InputError (a ValueError): an unknown site, an SAE of the wrong width, a tokenizer that does not fit, no data, a
            head that is not linear plus softcap, or an argument out of range.
        TypeError: an argument of the wrong kind.
    """
    check_saes(saes)
    check_tokenizer(tokenizer)
    check_documents(documents)
    check_numbers(tokens=tokens, batch_size=batch_size, context=context, bootstrap=bootstrap, seed=seed)
    check_choices(bos, model_name)
    head = find_head(model)
    context = _context(model, tokenizer, context)
    rows = head.weight.shape[0] if not hasattr(model, "get_input_embeddings") else _embedding_rows(model, head.weight)
    cutter = Tokens(tokenizer, context, bos=bos, rows=rows)
    device = next(model.parameters()).device
    runner = Runner(model, head, saes, device)

    def every_batch() -> Iterator[Batch]:
        return batches(selection.windows, batch_size, context)

    with _eval_mode(model, *saes.values()), torch.inference_mode():
        probe = torch.arange(min(_PROBE_TOKENS, context), device=device)[None] % rows
        check_head(model, head, probe)
        runner.probe(probe, reuse_layers)
        selection = select(documents, cutter, tokens, seed)
        started = time.perf_counter()
        advance = _advance(progress, selection.positions * passes(len(saes)))
        means = runner.collect_means(every_batch(), advance)
        targets = make_targets(saes, means, len(selection.domains))
        for batch in every_batch():
            runner.run(batch, targets, means, advance)
    seconds = time.perf_counter() - started
    per_document = selection.per_document()
    sites, everything, notes = summarise(targets, per_document, selection, bootstrap, seed)
    return Report(
        model=model_name or _name(model),
        tokens=selection.tokens,
        documents=len(selection.domains),
        nbytes=int(per_document[:, 1].sum()) if selection.has_bytes else None,
        sites=sites,
        all_sites=everything,
        context=context,
        prefix=[int(i) for i in cutter.prefix],
        mask=MASK,
        seed=seed,
        bootstrap=bootstrap,
        notes=[*_data_notes(selection, tokens), *notes],
        run={
            "device": str(device),
            "dtype": str(head.weight.dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "passes": passes(len(saes)),
            "layer_reuse": f"off: {runner.reuse.why}" if runner.reuse.why else "on",
            "seconds": round(seconds, 3),
        },
    )


def _context(model: Any, tokenizer: Any, context: int | None) -> int:
    limit = model_limit(model)
    if context is None:
        return default_context(model, tokenizer)
    if limit is not None and context > limit:
        raise InputError(f"context: got {context} tokens, but the model has only {limit} positions")
    return context


def _embedding_rows(model: Any, weight: torch.Tensor) -> int:
    embedding = getattr(model.get_input_embeddings(), "weight", weight)
    return min(len(embedding), len(weight))


def _name(model: Any) -> str:
    config = getattr(model, "config", None)
    return getattr(config, "_name_or_path", "") or type(model).__name__


def _advance(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def advance(positions: int) -> None:
        nonlocal done
        done += positions
        if progress is not None:
            progress(done, total)

    return advance


@contextlib.contextmanager
def _eval_mode(*modules: torch.nn.Module) -> Iterator[None]:
    """Dropout off; every submodule's own mode comes back afterwards."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in before:
            part.training = training


def _data_notes(selection: Selection, wanted: int | None) -> list[str]:
    notes = []
    if wanted is not None and selection.tokens < wanted:
        found = counted(selection.tokens, "countable token")
        notes.append(f"The data hold only {found} of the {wanted:,} asked for.")
    if not selection.has_bytes:
        notes.append("The tokenizer gives no character offsets, so bits per byte are unknown.")
    return notes
