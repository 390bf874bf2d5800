"""Nested slices of a text distribution: one token, inside one template, inside one domain, inside everything."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saekernels.errors import InputError, first_line
from saekernels.eval.text.documents import Document
from saekernels.eval.text.windows import Tokens, Window

LEVELS = ("token", "template", "domain", "everything")


@dataclass(frozen=True)
class Slices:
    """Which slices: a token id, a regular expression, a domain; each slice lies in the next.

    None leaves a slice out: a token without a template is one anywhere in the domain, without a domain one anywhere.
    begins: the word that the lines of the template begin with, where it was chosen.
    """

    token: int | None
    template: str | None
    domain: str | None
    begins: str | None = None

    @property
    def levels(self) -> tuple[str, ...]:
        """Those of LEVELS that there are, from narrow to broad."""
        there = (self.token, self.template, self.domain, "")
        return tuple(level for level, value in zip(LEVELS, there, strict=True) if value is not None)

    def names(self, tokenizer: Any) -> dict[str, str]:
        """Level -> what it is, in words; tokenizer: None names a token by its id."""
        what = f"lines that begin with {self.begins!r}" if self.begins else f"matches of {self.template}"
        anywhere = "anywhere" if self.domain is None else f"in {self.domain}"
        template = f"{what} {anywhere}"
        where = anywhere if self.template is None else f"in {template}"
        known = tokenizer is not None and self.token is not None
        token = f"the token {repr(tokenizer.decode([self.token])) if known else self.token} {where}"
        names = (token, template, self.domain or "", "everything")
        return {level: name for level, name in zip(LEVELS, names, strict=True) if level in self.levels}


def levels_of(document: Document, windows: Sequence[Window], slices: Slices, tokens: Tokens) -> list[np.ndarray]:
    """For each window [S] int8: the innermost slice that each position lies in, as an index of LEVELS."""
    made = [np.full(len(window.ids), 3, dtype=np.int8) for window in windows]
    if slices.domain not in (None, document.domain):
        return made
    matched = None if slices.template is None else matched_tokens(document.text, slices.template, tokens)
    for window, level in zip(windows, made, strict=True):
        own = np.ones(len(window.ids), dtype=bool)
        if slices.domain is not None:
            level[:] = 2
        if matched is not None:
            own = on_window(matched, window, tokens, False)
            level[own] = 1
        if slices.token is not None:
            level[own & (window.ids == slices.token)] = 0
    return made


def on_window(values: np.ndarray, window: Window, tokens: Tokens, missing: Any) -> np.ndarray:
    """[S]: of values [tokens of the document] those of the window; `missing` for what stands in front of each."""
    front = len(tokens.prefix)
    made = np.full(len(window.ids), missing, dtype=values.dtype)
    made[front:] = values[window.start : window.start + len(window.ids) - front]
    return made


def matched_tokens(text: str, template: str, tokens: Tokens) -> np.ndarray:
    """[tokens of the text] bool: whether a token lies in a match of the template, a regular expression.

    Raises InputError for one that is none, and for a tokenizer that gives no character offsets.
    """
    try:
        pattern = re.compile(template)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"template: {template!r:.80} is no regular expression: {first_line(error)}") from error
    covered = np.zeros(len(text) + 1, dtype=bool)
    for match in pattern.finditer(text):
        covered[match.start() : match.end()] = True
    return at_tokens(covered, text, tokens, False)


def at_tokens(values: np.ndarray, text: str, tokens: Tokens, missing: Any) -> np.ndarray:
    """[tokens of the text]: values [characters + 1] at each token's last character; `missing` for one of none.

    Raises InputError for a tokenizer that gives no character offsets.
    """
    if not tokens.has_bytes:
        raise InputError("template: this tokenizer gives no character offsets, so a template cannot be found")
    spans = tokens.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = np.asarray(spans["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    return np.where(ends[:, 1] > ends[:, 0], values[np.maximum(ends[:, 1] - 1, 0)], missing)


def alternate(domains: Sequence[str]) -> list[bool]:
    """For each document, whether it is fitted on: every other one of its domain, so that both halves hold each."""
    counts: Counter[str] = Counter()
    made = []
    for domain in domains:
        counts[domain] += 1
        made.append(counts[domain] % 2 == 1)
    return made
