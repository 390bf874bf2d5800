"""The text of a study of controls: half of the documents of each domain is fitted on, the others are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from saekernels.errors import InputError
from saekernels.eval.studies.controls.options import Options
from saekernels.eval.text.batches import Batch, batches
from saekernels.eval.text.documents import Document
from saekernels.eval.text.windows import Tokens, Window, chosen


class Text:
    """The chosen windows in memory; of each document its domain, digest, half, and fold within the half fitted on."""

    def __init__(self, documents: Iterable[Document], tokens: Tokens, options: Options) -> None:
        self.windows: list[Window] = []
        self.domains: list[str] = []
        self.digests: list[str] = []
        for document, windows in chosen(documents, tokens, options.wanted, options.seed):
            self.domains.append(document.domain)
            self.digests.append(hashlib.sha256(document.content()).hexdigest()[:16])
            self.windows += windows
        self.fitted = halves(self.domains)
        # Two folds of the documents that are fitted on, to choose ridges.
        folds = iter(halves([name for name, own in zip(self.domains, self.fitted, strict=True) if own]))
        self.second = [own and not next(folds) for own in self.fitted]
        self._size, self._leave_first = options.batch_size, options.rule.first

    def batches(self, fitting: bool | None) -> Iterator[Batch]:
        """Batches of the half that is fitted on, of the other, or for None of both."""
        own = [one for one in self.windows if fitting is None or self.fitted[one.document] is fitting]
        return batches(own, self._size, max((len(one.ids) for one in own), default=2), self._leave_first)

    def check(self) -> None:
        """InputError unless there is something to measure."""
        if all(self.fitted):
            raise InputError(
                "data: one half of the documents is fitted on and the other measured, but there is only one"
            )

    def positions(self, fitting: bool | None) -> int:
        """Tokens of that part of the text, what stands in front of windows included."""
        return sum(batch.positions for batch in self.batches(fitting))


def halves(domains: Sequence[str]) -> list[bool]:
    """For each document, whether it is in the first half: that with fewer of its domain, or else with fewer so far."""
    counts: dict[str, list[int]] = {}
    made: list[bool] = []
    for domain in domains:
        own = counts.setdefault(domain, [0, 0])
        first = own[0] < own[1] if own[0] != own[1] else 2 * sum(made) <= len(made)
        own[0 if first else 1] += 1
        made.append(first)
    return made
