"""Windows of text in the order in which they are trained on, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.eval.text.documents import Document
from saekernels.eval.text.windows import Tokens, chosen

_PIECE = 4  # windows of like length that the model reads at once: little padding, and activations of a few layers


@dataclass(frozen=True)
class TrainingWindows:
    """The windows of a run, and which of them each step reads.

    Attributes:
        ids: int32 [n], the tokens of all windows.
        trained: bool [n], whether a position counts: its token is not special, and no first one that is left out.
        offsets: int64 [windows + 1], where each window begins.
        steps: of each step the numbers of its windows.
    """

    ids: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    steps: list[np.ndarray]

    def pieces(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """(ids [B, S] int64, trained [B, S] bool) of a step, padded at the end, where a causal model does not look."""
        windows = self.steps[step]
        lengths = self.offsets[windows + 1] - self.offsets[windows]
        order = windows[np.argsort(lengths, kind="stable")]
        return [self._padded(order[start : start + _PIECE]) for start in range(0, len(order), _PIECE)]

    def tokens(self, step: int) -> int:
        """How many positions of a step are trained on."""
        return sum(int(self.trained[self.offsets[w] : self.offsets[w + 1]].sum()) for w in self.steps[step])

    def _padded(self, windows: np.ndarray) -> tuple[Tensor, Tensor]:
        longest = int((self.offsets[windows + 1] - self.offsets[windows]).max())
        ids = torch.zeros(len(windows), longest, dtype=torch.int64)
        trained = torch.zeros(len(windows), longest, dtype=torch.bool)
        for row, window in enumerate(windows):
            here = slice(self.offsets[window], self.offsets[window + 1])
            length = here.stop - here.start
            ids[row, :length] = torch.from_numpy(self.ids[here].astype(np.int64))
            trained[row, :length] = torch.from_numpy(self.trained[here])
        return ids, trained


def training_windows(
    documents: Iterable[Document],
    tokenizer: Any,
    *,
    context: int,
    tokens: int,
    batch: int,
    leave_first: int = 0,
    bos: bool | None = None,
    seed: int = 0,
) -> TrainingWindows:
    """Windows of documents, as `evaluate` cuts them, for so many steps that `tokens` positions are trained on.

    Documents are shuffled and read until there are enough tokens; if there are fewer, all are read again in another
    order, as often as it takes. The windows of each epoch are shuffled by themselves.

    Args:
        context: the longest window, in tokens.
        tokens: how many positions are trained on, over all steps; the last step that would be smaller is left out.
        batch: positions of a step; one that begins below it is read whole, so a step has up to a window more.
        leave_first: so many positions at the beginning of each window are not trained on.
        bos: as `evaluate` takes it.
        seed: of the order.

    Raises:
        InputError: no position to train on, or fewer than one step of them.
    """
    ids, trained, found = [], [], 0
    cutter = Tokens(tokenizer, context, bos=bos)
    for _, windows in chosen(documents, cutter, None, seed):
        for window in windows:
            counts = ~window.special
            counts[:leave_first] = False
            if counts.any() and found < tokens:
                ids.append(window.ids)
                trained.append(counts)
                found += int(counts.sum())
        if found >= tokens:
            break
    if found < min(batch, tokens):
        raise InputError(f"data: got {found} tokens to train on, need at least {min(batch, tokens)}, those of one step")
    sizes = np.array([int(one.sum()) for one in trained])
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    return TrainingWindows(
        np.concatenate(ids).astype(np.int32), np.concatenate(trained), offsets, _steps(sizes, tokens, batch, seed)
    )


def _steps(sizes: np.ndarray, tokens: int, batch: int, seed: int) -> list[np.ndarray]:
    epochs = -(-tokens // int(sizes.sum()))
    order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(len(sizes)) for epoch in range(epochs)])
    before = np.concatenate([[0], np.cumsum(sizes[order])])
    number = before[:-1] // batch
    return [order[number == step] for step in range(max(1, min(tokens, before[-1]) // batch))]
