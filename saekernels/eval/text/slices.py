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
_FIRST_WORD = re.compile(r"(?m)^[ \t]*([A-Za-z_]\w{1,})")


@dataclass(frozen=True)
class Slices:
    """Which slices: a token id, a regular expression, a domain; each slice lies in the next.

    begins: the word that the lines of the template begin with, where it was chosen.
    """

    token: int
    template: str
    domain: str
    begins: str | None = None

    def names(self, tokenizer: Any) -> dict[str, str]:
        """Level -> what it is, in words."""
        what = f"lines that begin with {self.begins!r}" if self.begins else f"matches of {self.template}"
        template = f"{what} in {self.domain}"
        return {
            "token": f"the token {tokenizer.decode([self.token])!r} in {template}",
            "template": template,
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
    """What is not given is chosen: the word that begins most lines of one domain, and that domain; the most frequent
    token of these lines. "Most" is of both halves (`alternate`): where the smaller half has most.

    Raises InputError for a domain with fewer than two documents, a template that does not match in both halves, and a
    token that is none or not in both.
    """
    by_domain: dict[str, list[Document]] = {}
    for one in documents:
        by_domain.setdefault(one.domain, []).append(one)
    if domain is not None and domain not in by_domain:
        raise InputError(f"domain: none of the documents is of {domain!r}; they are of {', '.join(sorted(by_domain))}")
    known = {name: own for name, own in by_domain.items() if len(own) > 1 and domain in (None, name)}
    if not known:
        which = "every domain" if domain is None else repr(domain)
        raise InputError(f"domain: {which} has one document here; need one to fit on and one to test")
    starts = {name: _common_start((own[0::2], own[1::2])) for name, own in known.items()}
    domain = domain or max(starts, key=lambda name: starts[name][1])
    begins = starts[domain][0] if template is None else None
    if begins == "":
        raise InputError("template: no word begins lines of both halves, so none can be chosen; give one")
    template = rf"(?m)^[ \t]*{re.escape(begins)}\b.*$" if begins is not None else str(template)
    halves = (known[domain][0::2], known[domain][1::2])
    counts = []
    for half in halves:
        counts.append(Counter[int]())
        for one in half:
            matched = _matched(one.text, template, tokens)
            ids = np.asarray(tokens.tokenizer(one.text, add_special_tokens=False, verbose=False)["input_ids"])
            counts[-1].update(ids[matched].tolist())
    common = counts[0] & counts[1]
    if not common:
        raise InputError(f"template: {template!r} has no token in both halves of the domain {domain!r}")
    if token is None:
        return Slices(common.most_common(1)[0][0], template, domain, begins)
    ids = tokens.tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"token: {token!r} is {len(ids)} tokens of this tokenizer, need one")
    if int(ids[0]) not in common:
        raise InputError(f"token: {token!r} is not within {template!r} in both halves of the domain {domain!r}")
    return Slices(int(ids[0]), template, domain, begins)


def _common_start(halves: Sequence[Sequence[Document]]) -> tuple[str, int]:
    """(the word that begins most lines of both halves, how many in the smaller), or ("", 0)."""
    words = [Counter(word for one in half for word in _FIRST_WORD.findall(one.text)) for half in halves]
    common = words[0] & words[1]
    return common.most_common(1)[0] if common else ("", 0)


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
