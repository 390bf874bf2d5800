"""Measures a model's own loss per document, for a family table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saekernels.eval.arguments import check_numbers, check_tokenizer
from saekernels.eval.passes.calls import trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.two_passes import Progress
from saekernels.eval.store.window_files import write_spool
from saekernels.eval.studies.family import Member
from saekernels.eval.text.batches import batches
from saekernels.eval.text.documents import Document, check_documents
from saekernels.eval.text.windows import Tokens, chosen, context_of
from saekernels.parallel.devices import input_device


@dataclass(frozen=True)
class Measured:
    """A model's mean CE of each document, in nats; ids are digests of the texts, tokens their counted predictions."""

    ids: list[str]
    tokens: list[int]
    losses: list[float]
    context: int


def measure_losses(
    model: Any,
    tokenizer: Any,
    documents: Iterable[Document],
    *,
    tokens: int | None = None,
    context: int | None = None,
    bos: bool | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Measured:
    """The clean loss of every document, on the windows and the mask of `evaluate`; arguments as there."""
    check_tokenizer(tokenizer)
    check_documents(documents)
    check_numbers(tokens=tokens, batch_size=batch_size, context=context, seed=seed)
    head = find_head(model)
    context = context_of(model, tokenizer, context)
    rows = head.vocabulary
    cutter = Tokens(tokenizer, context, bos=bos, rows=rows)
    device = input_device(model)
    with tempfile.TemporaryDirectory(prefix="saekernels-") as folder, torch.inference_mode():
        check_head(model, head, trial_ids(model, rows, context))
        text = chosen(documents, cutter, tokens, seed)
        spool = write_spool(Path(folder), text, context, cutter.has_bytes, rows)
        sums = torch.zeros(len(spool.domains), dtype=torch.float64)
        done = 0
        for chunk in range(spool.chunks):
            for batch in batches(spool.chunk(chunk), batch_size, context):
                hidden = head.hidden(batch.ids.to(device), batch.rows)
                ce = head.compare(hidden, hidden, batch.targets)[0]
                sums.index_add_(0, batch.documents, ce.to("cpu", torch.float64))
                done += batch.positions
                if progress is not None:
                    progress(done, spool.positions)
    counts = [tokens for tokens, _ in spool.counts]
    means = (sums / torch.tensor(counts, dtype=torch.float64)).tolist()
    return Measured(spool.digests, counts, means, context)


def make_member(name: str, model: Any, measured: Measured, train_tokens: int | None) -> Member:
    """A row of a family table."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    embeddings = {id(w): w.numel() for w in _embeddings(model)}
    total = sum(measured.tokens)
    loss = sum(mean * count for mean, count in zip(measured.losses, measured.tokens, strict=True)) / total
    rest = parameters - sum(embeddings.values())
    return Member(name, parameters, rest, train_tokens, loss, measured.losses)


def _embeddings(model: Any) -> list[torch.Tensor]:
    parts = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    weights = [getattr(part(), "weight", None) for part in parts if part is not None]
    return [weight for weight in weights if isinstance(weight, torch.Tensor)]
