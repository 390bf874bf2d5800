"""Log probabilities of continuations after their prompts, by the clean model and with SAEs spliced in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from saekernels.errors import InputError
from saekernels.eval.passes.left import CleanRuns, SiteNorms
from saekernels.eval.text.batches import Batch, make_batch
from saekernels.eval.text.windows import Tokens, Window
from saekernels.parallel.devices import input_device
from saekernels.sae.module import SAE
from saekernels.splice.context import splice
from saekernels.splice.leave import Norms

Sequences = list[tuple[list[int], list[int]]]
"""(tokens in front, tokens of the continuation) of each."""


def tokenized(tokens: Tokens, texts: Sequence[tuple[str, str]], where: str, limit: int | None) -> Sequences:
    """(prompt, continuation) as tokens, with what the tokenizer puts in front.

    Raises InputError, which begins with `where`, for one without tokens, or with more than the model's `limit`.
    """
    made = []
    for prompt, continuation in texts:
        front = [*tokens.prefix, *tokens.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        ids = tokens.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        if not front or not ids:
            raise InputError(f"{where}: {prompt + continuation!r:.60} gives no tokens")
        made.append((front, ids))
    longest = max((len(front) + len(ids) for front, ids in made), default=0)
    if limit is not None and longest > limit:
        raise InputError(f"{where}: a prompt has {longest} tokens, the model only {limit} positions")
    return made


def log_probabilities(
    left: SiteNorms,
    splices: Sequence[Mapping[str, SAE]],
    sequences: Sequences,
    tokens: Tokens,
    *,
    batch_size: int,
    advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """[sequences, 1 + splices] fp64, nats: log p of each continuation by the clean model, then by each splice.

    left: the model, all sites of the splices, and what stays as it is beside special tokens; medians of norms are those
    of these sequences. splices: site -> SAE. advance: told of the positions of each pass.
    """
    found = np.zeros((len(sequences), 1 + len(splices)))
    told = advance or (lambda positions: None)
    parts = list(_batches(sequences, tokens, batch_size, left.rule.first))
    left.norms = {site: Norms() for site in left.sites}
    runs = CleanRuns(left, [batch for batch, _ in parts], True, told)
    for (batch, clean, calls), (_, owner) in zip(runs, parts, strict=True):
        assert clean is not None
        masks = left.masks(batch, calls)
        losses = [left.head.compare(clean, clean, batch.targets)[0]]
        for sites in splices:
            untouched = ~batch.touched if masks is None else {site: ~masks[site] for site in sites}
            with splice(left.model, sites, untouched=untouched):
                spliced = left.head.hidden(batch.ids.to(input_device(left.model)), batch.rows)
            losses.append(left.head.compare(clean, spliced, batch.targets)[1])
            told(batch.positions)
        for column, loss in enumerate(losses):
            values = loss.double().cpu().numpy()
            found[:, column] -= np.bincount(owner, weights=values, minlength=len(sequences))
    return found


def positions(sequences: Sequences) -> int:
    """How many positions one pass over these sequences has."""
    return sum(len(one) for one in {_given(*one) for one in sequences})


def _given(front: list[int], ids: list[int]) -> tuple[int, ...]:
    """What a model reads to predict a continuation; sequences that differ in their last token alone share it."""
    return (*front, *ids[:-1])


def _batches(sequences: Sequences, tokens: Tokens, size: int, leave_first: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Batches of at most `size` rows, longest first, whose `rows` are the places that predict a continuation's tokens;
    and of each such place the sequence that it is of."""
    owners: dict[tuple[int, ...], list[int]] = {}
    for number, sequence in enumerate(sequences):
        owners.setdefault(_given(*sequence), []).append(number)
    order = sorted(owners, key=lambda one: -len(one))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        whole = [np.asarray(one, dtype=np.int32) for one in chosen]
        nothing = [np.zeros(len(ids), dtype=np.int64) for ids in whole]
        windows = [Window(0, ids, np.isin(ids, tokens.special), none) for ids, none in zip(whole, nothing, strict=True)]
        batch = make_batch(windows, leave_first)
        rows, targets, owner = [], [], []
        for row, one in enumerate(chosen):
            for number in owners[one]:
                front, ids = sequences[number]
                rows += [row * batch.ids.shape[1] + len(front) - 1 + i for i in range(len(ids))]
                targets += ids
                owner += [number] * len(ids)
        yield replace(batch, rows=torch.tensor(rows), targets=torch.tensor(targets)), np.array(owner)
