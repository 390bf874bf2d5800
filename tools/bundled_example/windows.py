"""Token windows: the fixed-length pieces that the language model, the 5-gram and the SAEs all see.

A window is <bos> and up to `context - 1` tokens of text. Training windows are cut from the stream of all documents,
<eos> between them; held-out windows never cross a document.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BOS_ID, EOS_ID, PAD_ID = 0, 1, 2


class TrainingWindows:
    """Windows of the training stream in a seeded order: window `n` is the same on every run.

    An epoch cuts the stream at a random offset and visits its windows in a random order.
    """

    def __init__(self, tokens: np.ndarray, context: int, seed: int) -> None:
        self.stream = tokens[tokens != BOS_ID]
        self.length, self.seed = context - 1, seed
        self.per_epoch = len(self.stream) // self.length - 1
        if self.per_epoch < 1:
            raise ValueError(f"tokens: {len(self.stream)} tokens are fewer than two windows of {self.length}")
        self._epoch, self._starts = -1, np.empty(0, np.int64)

    def _start(self, number: int) -> int:
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            offset = random.integers(self.length)
            self._starts = offset + self.length * random.permutation(self.per_epoch)
            self._epoch = epoch
        return int(self._starts[place])

    def batch(self, first: int, count: int) -> np.ndarray:
        """[count, context] int64: windows first .. first+count-1."""
        rows = np.full((count, self.length + 1), BOS_ID, np.int64)
        for row in range(count):
            start = self._start(first + row)
            rows[row, 1:] = self.stream[start : start + self.length]
        return rows


@dataclass(frozen=True)
class HeldOut:
    """Held-out windows: `ids` [n, context] int64, <pad> after the end, `domain` and `document` of each window."""

    ids: np.ndarray
    domain: np.ndarray
    document: np.ndarray

    def subset(self, per_domain: int, seed: int = 0) -> HeldOut:
        """At most `per_domain` windows of each domain, chosen by seed."""
        random = np.random.default_rng(seed)
        keep = [random.permutation(np.flatnonzero(self.domain == name))[:per_domain] for name in np.unique(self.domain)]
        rows = np.sort(np.concatenate(keep))
        return HeldOut(self.ids[rows], self.domain[rows], self.document[rows])

    def counted(self) -> np.ndarray:
        """[n, context - 1] bool: predictions whose token and next token are both text (no special token)."""
        text = self.ids > PAD_ID
        return text[:, :-1] & text[:, 1:]


def held_out(work: Path, context: int, name: str = "heldout") -> HeldOut:
    """The windows of the documents that `tokenizer.py` ("heldout") or `evalset.py` ("eval") left in `work`."""
    tokens = np.load(work / f"{name}.npy")
    ids, domain, document = [], [], []
    for number, entry in enumerate(json.loads((work / f"{name}_documents.json").read_text())):
        body = tokens[entry["start"] + 1 : entry["start"] + entry["tokens"]]
        for start in range(0, len(body), context - 1):
            piece = body[start : start + context - 1]
            row = np.full(context, PAD_ID, np.int64)
            row[0], row[1 : 1 + len(piece)] = BOS_ID, piece
            ids.append(row)
            domain.append(entry["domain"])
            document.append(number)
    return HeldOut(np.array(ids), np.array(domain), np.array(document))
