"""The text of a study of reuse, on disk: of each document its domain, the half it counts in, and its group there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saekernels.display.numbers import counted
from saekernels.errors import InputError
from saekernels.eval.store.window_files import write_spool
from saekernels.eval.studies.reuse.marks import Marks
from saekernels.eval.studies.reuse.options import Options
from saekernels.eval.sums.jackknife import GROUPS
from saekernels.eval.text.batches import Batch, batches
from saekernels.eval.text.documents import Document
from saekernels.eval.text.windows import Tokens, Window, chosen

LEAST = 4
"""Documents of a domain: two in each half, so that one can be left out."""


class Layout:
    """Where each document counts.

    Documents of a domain go to the two halves by turns, and within a half to the groups by turns. domains: sorted
    names; domain [documents] int64, -1 for those left out; half, group [documents] int64; groups: how many there are;
    first [documents] bool: the first document of its domain, half and group.
    """

    def __init__(self, names: Sequence[str]) -> None:
        many = Counter(names)
        self.domains = sorted(name for name, number in many.items() if number >= LEAST)
        self.notes = [
            f"Left out: the domain {name}, which has {counted(number, 'document')}; at least {LEAST} are needed."
            for name, number in sorted(many.items())
            if number < LEAST
        ]
        if len(self.domains) < 2:
            told = ", ".join(f"{name} ({number})" for name, number in sorted(many.items()))
            raise InputError(
                f"data: need at least two domains of {LEAST} documents each (--domain-field, --tokens), got {told}"
            )
        places = {name: number for number, name in enumerate(self.domains)}
        self.domain = torch.tensor([places.get(name, -1) for name in names])
        before: Counter[str] = Counter()
        order = []
        for name in names:
            order.append(before[name])
            before[name] += 1
        turn = torch.tensor(order)
        self.half = turn % 2
        self.groups = min(GROUPS, max(many[name] for name in self.domains) // 2)
        self.group = turn // 2 % self.groups
        self.first = (turn // 2 < self.groups) & (self.domain >= 0)

    def documents(self) -> dict[str, int]:
        """How many each domain has."""
        return {name: int((self.domain == number).sum()) for number, name in enumerate(self.domains)}

    def cells(self, documents: Tensor) -> Tensor:
        """[n] int64: for documents [n] their places in sums [2, G, D, ...] that are seen flat."""
        at = self.half[documents] * self.groups + self.group[documents]
        return at * len(self.domains) + self.domain[documents]


class Text:
    """The chosen windows in a folder, their layout, and the slices of their positions where the part is asked for."""

    def __init__(
        self, folder: Path, documents: Iterable[Document], tokens: Tokens, vocabulary: int, options: Options
    ) -> None:
        found = chosen(documents, tokens, options.wanted, options.seed)
        self.marks = Marks(folder, tokens, options.seed) if "slices" in options.parts else None
        marked = found if self.marks is None else self.marks.marking(found, LEAST)
        self.spool = write_spool(folder, marked, tokens.context, tokens.has_bytes, vocabulary)
        self.layout = Layout(self.spool.domains)
        self._size, self._context, self._first = options.batch_size, tokens.context, options.rule.first
        self._marked: dict[tuple[int, int], np.ndarray] = {}
        if self.marks is not None:
            self.marks.count(self.spool, self.layout.domain >= 0, self._first)

    @property
    def positions(self) -> int:
        """Tokens of the whole text, what stands in front of windows included."""
        return self.spool.positions

    def tokens(self) -> dict[str, int]:
        """Domain -> predictions that count, in both halves."""
        counts, domain = self.spool.per_document()[:, 0], self.layout.domain.numpy()
        return {name: int(counts[domain == number].sum()) for number, name in enumerate(self.layout.domains)}

    def batches(self, half: int | None, domain: int | None = None, most: int | None = None) -> Iterator[Batch]:
        """Batches of one half, or for None of both, without the documents that are left out; or of one domain.

        most: so many positions at most, if a window has no more; None for as many as a batch may have.
        """
        size = self._size if most is None else max(1, min(self._size, most // self._context))
        kept = self.layout.domain >= 0 if domain is None else self.layout.domain == domain
        if half is not None:
            kept = kept & (self.layout.half == half)
        for windows in self._chunks(kept):
            yield from batches(windows, size, self._context, self._first)

    def cells(self, half: int) -> Iterator[tuple[int, int, Batch]]:
        """(group, domain, batch) of one half: every batch is of one group of one domain."""
        for windows in self._chunks((self.layout.domain >= 0) & (self.layout.half == half)):
            cells: dict[tuple[int, int], list[Window]] = {}
            for one in windows:
                cell = int(self.layout.group[one.document]), int(self.layout.domain[one.document])
                cells.setdefault(cell, []).append(one)
            for (group, domain), own in cells.items():
                for batch in batches(own, self._size, self._context, self._first):
                    yield group, domain, batch

    def _chunks(self, kept: Tensor) -> Iterator[list[Window]]:
        """The windows of these documents, as many at a time as lie in one file."""
        begin = 0
        for number in range(self.spool.chunks):
            windows = self.spool.chunk(number)
            if self.marks is not None:
                self._marked = self.marks.of_windows(windows, begin)
                begin += sum(len(one.ids) for one in windows)
            yield [one for one in windows if kept[one.document]]

    def shells(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Of a batch that `batches` gave last: in which slice and in which random set each position is, [B, S] each."""
        return None if self.marks is None else self.marks.shells(batch, self._marked)
