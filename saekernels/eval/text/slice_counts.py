"""How many positions every possible slice of a text has, in the half to fit on and in the half to measure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saekernels.eval.text.documents import Document
from saekernels.eval.text.slices import alternate, at_tokens, matched_tokens, on_window
from saekernels.eval.text.windows import Tokens, Window

Sample = Sequence[tuple[Document, Sequence[Window]]]
"""What `chosen` gives: documents with their windows."""

_LINE = re.compile(r"(?m)^[ \t]*([A-Za-z_]\w{1,}).*$")


@dataclass(frozen=True)
class Minimum:
    """What a slice needs for a probe of this rank: `fitted` positions in the half of the documents that probes are
    fitted on; `measured` predictions in the other half, and as many there outside of the slice.

    n positions differ in at most n - 1 directions: a probe of rank n - 1 goes through all of them, and no higher rank
    differs from it. From rank + 2 positions on it leaves a direction out.
    """

    rank: int
    measured: int = 10

    @property
    def fitted(self) -> int:
        """Positions that a probe of this rank must be fitted on at least."""
        return self.rank + 2


@dataclass(frozen=True)
class Table:
    """The touched positions of a sample, n of them.

    columns: name -> [n] int64, the ids of a position's token, domain, document and template (the first word of its
    line, or 0 in a match of the given one; -1 for neither). fitted [n] bool: in the half to fit on; measured [n] bool:
    its prediction is measured. words, domains: by id.
    """

    columns: dict[str, np.ndarray]
    fitted: np.ndarray
    measured: np.ndarray
    words: list[str]
    domains: list[str]


@dataclass(frozen=True)
class Counts:
    """Of each possible slice of one sort, [m] int64: a row of the table that lies in it; positions in the half to fit
    on; predictions measured inside and outside; documents measured in.
    """

    sort: tuple[str, ...]
    row: np.ndarray
    fitted: np.ndarray
    measured: np.ndarray
    outside: np.ndarray
    documents: np.ndarray

    def best(self, least: Minimum, documents: int) -> int | None:
        """The one with most positions in its smaller half among those that have enough, if there is any."""
        size = np.minimum(self.fitted, self.measured)
        enough = (self.fitted >= least.fitted) & (self.documents >= documents)
        enough &= (self.measured >= least.measured) & (self.outside >= least.measured)
        return int(np.argmax(np.where(enough, size, -1))) if enough.any() else None

    def nearest(self, least: Minimum) -> tuple[float, int | None]:
        """(how many times as much text would give enough, of which one): infinity where each lacks a half, None where
        there is no slice."""
        if not len(self.row):
            return math.inf, None
        have = np.stack([self.fitted, self.measured, self.outside])
        need = np.array([least.fitted, least.measured, least.measured])[:, None]
        times = np.where(have > 0, need / np.maximum(have, 1), np.inf).max(0)
        which = int(np.lexsort((-(self.fitted + self.measured), times))[0])
        return float(times[which]), which


def table_of(sample: Sample, tokens: Tokens, template: str | None) -> Table:
    """The table of these documents, by the given template or by the words that begin lines.

    Raises InputError for a template that is no regular expression, or that is given where the tokenizer gives no
    character offsets.
    """
    halves = alternate([document.domain for document, _ in sample])
    words: dict[str, int] = {}
    domains: dict[str, int] = {}
    parts = []
    for number, (document, windows) in enumerate(sample):
        # Without characters there are no lines, which only those who name a template need to hear.
        known = template is not None or (tokens.has_bytes and document.ids is None)
        lines = _templates(document.text, tokens, template, words) if known else None
        domain = domains.setdefault(document.domain, len(domains))
        for window in windows:
            counted = np.append(window.counted, False)
            own = -1 if lines is None else on_window(lines, window, tokens, -1)
            columns = (window.ids, own, domain, number, halves[number], counted)
            parts.append(np.stack(np.broadcast_arrays(*columns)).astype(np.int64)[:, ~window.special])
    token, line, domain_of, owner, half, predicted = np.concatenate(parts, axis=1)
    columns_by_name = {"token": token, "template": line, "domain": domain_of, "document": owner}
    fitted = half.astype(bool)
    return Table(columns_by_name, fitted, ~fitted & predicted.astype(bool), list(words), list(domains))


def _templates(text: str, tokens: Tokens, template: str | None, words: dict[str, int]) -> np.ndarray:
    """[tokens of the text] int64: see `Table`; new words are added to `words`."""
    if template is not None:
        return np.where(matched_tokens(text, template, tokens), 0, -1)
    lines = np.full(len(text) + 1, -1, dtype=np.int64)
    for match in _LINE.finditer(text):
        lines[match.start() : match.end()] = words.setdefault(match[1], len(words))
    return at_tokens(lines, text, tokens, -1)


def count(table: Table, sort: tuple[str, ...], only: Mapping[str, int]) -> Counts:
    """Every slice of this sort that has a position, with those values alone where `only` has some."""
    inside = np.ones(len(table.fitted), dtype=bool)
    for name, value in only.items():
        inside &= table.columns[name] == value
    if "template" in sort:
        inside &= table.columns["template"] >= 0
    rows = np.flatnonzero(inside)
    key = np.zeros(len(rows), dtype=np.int64)
    for name in sort:
        key = key * (int(table.columns[name].max()) + 1) + table.columns[name][rows]
    keys, first, which = np.unique(key, return_index=True, return_inverse=True)
    measured, owners = table.measured[rows], table.columns["document"][rows]
    documents = int(table.columns["document"].max()) + 1
    pairs = np.unique(which[measured] * documents + owners[measured])
    own = np.bincount(which[measured], minlength=len(keys))
    return Counts(
        sort,
        rows[first],
        np.bincount(which[table.fitted[rows]], minlength=len(keys)),
        own,
        int(table.measured.sum()) - own,
        np.bincount(pairs // documents, minlength=len(keys)),
    )
