"""A document: the unit of text that is evaluated, and over which the bootstrap resamples."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from saekernels.display.numbers import counted
from saekernels.errors import InputError, first_line, kind_of


@dataclass(frozen=True)
class Document:
    """One text of the evaluated distribution: the unit over which the bootstrap resamples.

    labels: further strata by name, such as {"language": "de"}.
    ids: the tokens of a text that was tokenized before, in place of the text; it then has no bytes.
    """

    text: str
    domain: str = "all"
    source: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("text", "domain", "source"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"Document: {name} is {value!r:.40}, need a str")
        if not isinstance(self.labels, Mapping) or not all(
            isinstance(s, str) for kv in self.labels.items() for s in kv
        ):
            raise TypeError(f"Document: labels is {self.labels!r:.40}, need a mapping from str to str")
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"Document: text is not valid Unicode: {first_line(error)}") from error
        if self.ids is not None and not all(isinstance(i, int) and 0 <= i < 2**31 for i in self.ids):
            raise InputError(f"Document: ids is {self.ids!r:.40}, need token ids, ints of at least 0")

    def content(self) -> bytes:
        """What tells it from another document: its text, or its tokens."""
        return self.text.encode() if self.ids is None else np.asarray(self.ids, dtype="<i4").tobytes()


def check_documents(documents: object) -> None:
    """TypeError unless `documents` can be gone through; of a sequence, unless each is a Document."""
    if not isinstance(documents, Iterable):
        raise TypeError(f"documents: got {kind_of(documents)}, need an iterable of saekernels.Document")
    for number, document in enumerate(documents if isinstance(documents, Sequence) else ()):
        check_document(document, number)


def check_document(document: object, number: int) -> None:
    """TypeError unless the document with this number is one."""
    if not isinstance(document, Document):
        raise TypeError(f"documents: number {number} is {kind_of(document)}, need a saekernels.Document")


def check_domains(domains: Sequence[str], wanted: Iterable[str]) -> None:
    """InputError for a domain without two documents, one to fit on and one to measure; domains: of each document."""
    documents = Counter(domains)
    for name in wanted:
        if documents[name] < 2:
            there = ", ".join(f"{one} {number}" for one, number in sorted(documents.items()))
            here = f"{name!r} has {counted(documents[name], 'document')} here"
            raise InputError(f"domain: {here}, need two or more; there are {there}")


def digest(documents: Iterable[Document]) -> str:
    """A short digest of texts, domains and labels, in order."""
    running = hashlib.sha256()
    for document in documents:
        head = json.dumps([document.domain, sorted(document.labels.items()), len(document.ids or document.text)])
        running.update(head.encode() + document.content())
    return running.hexdigest()[:16]
