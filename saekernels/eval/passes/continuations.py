"""Log probabilities of continuations after their prompts, by the clean model and with SAEs spliced in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.text.windows import Tokens
from saekernels.parallel.devices import input_device
from saekernels.sae.module import SAE
from saekernels.splice.context import splice

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
    model: Any,
    head: Head,
    splices: Sequence[Mapping[str, SAE]],
    sequences: Sequences,
    tokens: Tokens,
    *,
    batch_size: int,
    leave_first: int = 0,
    advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """[sequences, 1 + splices] fp64, nats: log p of each continuation by the clean model, then by each splice.

    splices: site -> SAE. Left untouched: special tokens, and the first `leave_first` positions of a row. advance: told
    of the positions of each pass.
    """
    # Sequences that differ in the last token alone are one row of the model's.
    given = [(*front, *ids[:-1]) for front, ids in sequences]
    rows = sorted(dict.fromkeys(given), key=lambda one: -len(one))
    owners: dict[tuple[int, ...], list[int]] = {one: [] for one in rows}
    for number, one in enumerate(given):
        owners[one].append(number)
    found = np.zeros((len(sequences), 1 + len(splices)))
    special = torch.from_numpy(tokens.special).long()
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        numbers = [(row, number) for row, one in enumerate(part) for number in owners[one]]
        ids, real = _padded(part)
        untouched = ~real | torch.isin(ids, special)
        untouched[:, :leave_first] = True
        at, wanted, owner = _places([(row, *sequences[number], number) for row, number in numbers], ids.shape[1])
        ids = ids.to(input_device(model))
        clean = head.hidden(ids, at)
        told = advance or (lambda positions: None)
        told(int(real.sum()))
        if not splices:
            found[:, 0] += _summed(head.compare(clean, clean, wanted)[0], owner, len(sequences))
        for column, sites in enumerate(splices, 1):
            with splice(model, sites, untouched=untouched):
                spliced = head.hidden(ids, at)
            losses = head.compare(clean, spliced, wanted)
            if column == 1:
                found[:, 0] += _summed(losses[0], owner, len(sequences))
            found[:, column] += _summed(losses[1], owner, len(sequences))
            told(int(real.sum()))
    return found


def positions(sequences: Sequences) -> int:
    """How many positions one pass over these sequences has."""
    return sum(len(one) for one in {(*front, *ids[:-1]) for front, ids in sequences})


def _padded(rows: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """ids [B, S] int64, padded on the right, and where they are real, bool [B, S]."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    real = torch.zeros(ids.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        real[number, : len(row)] = True
    return ids, real


def _places(rows: Sequence[tuple[int, list[int], list[int], int]], width: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Of each token of each continuation: the flat position that predicts it, the token, and whose it is."""
    at, wanted, owner = [], [], []
    for row, front, ids, number in rows:
        at += [row * width + len(front) - 1 + i for i in range(len(ids))]
        wanted += ids
        owner += [number] * len(ids)
    return torch.tensor(at), torch.tensor(wanted), np.array(owner)


def _summed(losses: Tensor, owner: np.ndarray, sequences: int) -> np.ndarray:
    return -np.bincount(owner, weights=losses.double().cpu().numpy(), minlength=sequences)
