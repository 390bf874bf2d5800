"""In which slices of a text each position lies, from narrow to broad, and in which random sets of as many positions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.eval.store.window_files import Spool
from saekernels.eval.text.batches import Batch
from saekernels.eval.text.documents import Document
from saekernels.eval.text.slice_choice import choose_slices
from saekernels.eval.text.slice_counts import Minimum
from saekernels.eval.text.slices import LEVELS, Slices, levels_of
from saekernels.eval.text.windows import Tokens, Window

Sample = tuple[Document, list[Window]]
# Slices are chosen on the first of a text, so many tokens, for a probe of this rank.
_CHOSEN_ON = 200_000
_RANK = 32


class Marks:
    """The slices of a text that is written window by window: of each position the innermost one, in a file.

    Documents pass through `marking` before they are written; `count` comes after that.
    """

    def __init__(self, folder: Path, tokens: Tokens, seed: int) -> None:
        self.path, self.tokens, self.seed = folder / "levels.bin", tokens, seed
        self.slices = Slices(None, None, None)
        self.notes: list[str] = []
        self.rates: dict[str, float] = {}

    @property
    def levels(self) -> tuple[str, ...]:
        """From narrow to broad: slices of `saekernels breadth`; "everything" is the last."""
        return self.slices.levels

    def names(self) -> dict[str, str]:
        """Level, and "document", -> what it is, in words."""
        return {**self.slices.names(self.tokens.tokenizer), "document": "one document each"}

    def marking(self, documents: Iterable[Sample], least: int) -> Iterator[Sample]:
        """The same documents; on the way slices are chosen in domains of `least` documents, positions marked.

        Where no slice has enough positions there are none but single documents and everything, and a note says so.
        """
        rest = iter(documents)
        head, taken = [], 0
        for document, windows in rest:
            head.append((document, windows))
            taken += sum(len(window.ids) for window in windows)
            if taken >= _CHOSEN_ON:
                break
        many = Counter(document.domain for document, _ in head)
        kept = [one for one in head if many[one[0].domain] >= least]
        if kept:
            try:
                self.slices, self.notes = choose_slices(kept, self.tokens, Minimum(_RANK))
            except InputError as error:
                self.notes = [f"Left out: slices narrower than everything but documents. {error}."]
        with open(self.path, "wb") as file:
            for document, windows in itertools.chain(head, rest):
                for level in levels_of(document, windows, self.slices, self.tokens):
                    file.write(level.tobytes())
                yield document, windows

    def of_windows(self, windows: Sequence[Window], begin: int) -> dict[tuple[int, int], np.ndarray]:
        """(document, start) -> [S] int8 of successive windows in front of which `begin` positions are marked."""
        size = sum(len(window.ids) for window in windows)
        flat = np.fromfile(self.path, dtype=np.int8, count=size, offset=begin)
        ends = np.cumsum([len(window.ids) for window in windows])
        return {(w.document, w.start): part for w, part in zip(windows, np.split(flat, ends[:-1]), strict=True)}

    def count(self, spool: Spool, kept: Tensor, leave_first: int) -> None:
        """Set the rates of the random sets, from how many positions are touched; kept [documents] bool."""
        counts = np.zeros(len(LEVELS), dtype=np.int64)
        begin = 0
        for number in range(spool.chunks):
            windows = spool.chunk(number)
            marked = self.of_windows(windows, begin)
            begin += sum(len(window.ids) for window in windows)
            for window in windows:
                if kept[window.document]:
                    own = ~window.special
                    own[:leave_first] = False
                    counts += np.bincount(marked[window.document, window.start][own], minlength=len(LEVELS))
        reached = dict(zip(LEVELS, np.cumsum(counts).tolist(), strict=True))
        total = max(1, reached["everything"])
        self.rates = {level: reached[level] / total for level in self.levels if level != "everything"}
        # A document lies in one half, of which it is so large a part.
        self.rates["document"] = min(1.0, 2 / max(1, int(kept.sum())))

    def shells(self, batch: Batch, marked: Mapping[tuple[int, int], np.ndarray]) -> tuple[Tensor, Tensor]:
        """[B, S] int64 each: the slice of a position as its place in `levels`, and the place in `drawn` of the
        smallest random set that holds it, or their number; padding: in the last of both."""
        places = np.zeros(len(LEVELS), dtype=np.int64)
        places[[LEVELS.index(level) for level in self.levels]] = range(len(self.levels))
        slices = np.full(batch.ids.shape, len(self.levels) - 1)
        drawn = np.full(batch.ids.shape, len(self.rates))
        bounds = [rate for _, rate in self.drawn]
        for row, window in enumerate(batch.windows):
            size = len(window.ids)
            slices[row, :size] = places[marked[window.document, window.start]]
            chance = np.random.default_rng((self.seed, 29, window.document, window.start)).random(size)
            drawn[row, :size] = np.searchsorted(bounds, chance, side="right")
        return torch.from_numpy(slices), torch.from_numpy(drawn)

    @property
    def drawn(self) -> list[tuple[str, float]]:
        """The random sets, each in the next: the level that they are as large as, and the share of all positions."""
        return sorted(self.rates.items(), key=lambda pair: pair[1])
