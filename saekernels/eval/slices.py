"""Nested slices of a text distribution: one token, inside one template, inside one domain, inside everything."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .documents import Document
from .errors import InputError, first_line
from .windows import Tokens, Window

LEVELS = ("token", "template", "domain", "everything")
_FIRST_WORD = re.compile(r"(?m)^[ \t]*([A-Za-z_]\w{1,})")


@dataclass(frozen=True)
class Slices:
    """Which slices: a token id, a regular expression, a domain; each slice lies in the next."""

    token: int
    template: str
    domain: str

    def names(self, tokenizer: Any) -> dict[str, str]:
        """Level -> what it is, in words."""
        return {
            "token": f"the token {tokenizer.decode([self.token])!r} there",
            "template": f"text that matches {self.template!r} there",
            "domain": self.domain,
            "everything": "everything",
        }


def levels_of(document: Document, windows: Sequence[Window], slices: Slices, tokens: Tokens) -> list[np.ndarray]:
    """For each window [S] int8: the innermost slice that each position lies in, as an index of LEVELS."""
    inside = document.domain == slices.domain
    matched = _matched(document.text, slices.template, tokens) if inside else np.zeros(0, dtype=bool)
    made = []
    for window in windows:
        level = np.full(len(window.ids), 3, dtype=np.int8)
        if inside:
            level[:] = 2
            front = len(tokens.prefix)
            own = matched[window.start : window.start + len(window.ids) - front]
            level[front:][own] = 1
            level[(level == 1) & (window.ids == slices.token)] = 0
        made.append(level)
    return made


def choose_slices(
    documents: Sequence[Document], tokens: Tokens, domain: str | None, template: str | None, token: str | None
) -> Slices:
    """What is not given is chosen: the domain with the most text; lines that begin with the word that most of its lines
    begin with; the most frequent token there.

    Raises InputError for a domain that is not there, a template that matches nothing, and a token that is none.
    """
    sizes: Counter[str] = Counter()
    for one in documents:
        sizes[one.domain] += len(one.text)
    if domain is not None and domain not in sizes:
        raise InputError(f"domain: none of the documents is of {domain!r}; they are of {', '.join(sorted(sizes))}")
    domain = domain or sizes.most_common(1)[0][0]
    own = [one for one in documents if one.domain == domain]
    template = template or _common_start(own)
    counts: Counter[int] = Counter()
    for one in own:
        matched = _matched(one.text, template, tokens)
        ids = np.asarray(tokens.tokenizer(one.text, add_special_tokens=False, verbose=False)["input_ids"])
        counts.update(ids[matched].tolist())
    if not counts:
        raise InputError(f"template: {template!r} matches nothing in the domain {domain!r}")
    if token is None:
        return Slices(counts.most_common(1)[0][0], template, domain)
    ids = tokens.tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"token: {token!r} is {len(ids)} tokens of this tokenizer, need one")
    return Slices(int(ids[0]), template, domain)


def _common_start(documents: Sequence[Document]) -> str:
    words: Counter[str] = Counter()
    for one in documents:
        words.update(_FIRST_WORD.findall(one.text))
    if not words:
        raise InputError("template: no line begins with a word, so none can be chosen; give one")
    return rf"(?m)^[ \t]*{re.escape(words.most_common(1)[0][0])}\b.*$"


def _matched(text: str, template: str, tokens: Tokens) -> np.ndarray:
    """[tokens of the text] bool: whether a token lies in a match of the template."""
    try:
        pattern = re.compile(template)
    except re.error as error:
        raise InputError(f"template: {template!r} is no regular expression: {first_line(error)}") from error
    if not tokens.has_bytes:
        raise InputError("template: this tokenizer gives no character offsets, so a template cannot be found")
    spans = tokens.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = np.asarray(spans["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    covered = np.zeros(len(text) + 1, dtype=np.int64)
    for match in pattern.finditer(text):
        covered[match.start() : match.end()] = 1
    # A token is inside if its last character is.
    return covered[np.maximum(ends[:, 1] - 1, 0)].astype(bool) & (ends[:, 1] > ends[:, 0])


def alternate(domains: Sequence[str]) -> list[bool]:
    """For each document, whether it is fitted on: every other one of its domain, so that both halves hold each."""
    counts: Counter[str] = Counter()
    made = []
    for domain in domains:
        counts[domain] += 1
        made.append(counts[domain] % 2 == 1)
    return made
