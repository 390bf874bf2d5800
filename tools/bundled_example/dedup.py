"""Near-duplicate removal: no two kept documents share a long passage."""

from __future__ import annotations

import hashlib

LINES, LONG = 4, 160


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _shingles(lines: list[str]) -> list[tuple[int, list[int]]]:
    """(digest, line numbers) for each run of `LINES` non-empty lines and for each line of `LONG` characters."""
    kept = [(number, " ".join(line.split())) for number, line in enumerate(lines) if line.strip()]
    found = [(_digest(text), [number]) for number, text in kept if len(text) >= LONG]
    for start in range(len(kept) - LINES + 1):
        run = kept[start : start + LINES]
        text = "\n".join(line for _, line in run)
        if len(text) >= 80:
            found.append((_digest(text), [number for number, _ in run]))
    return found


class Deduplicator:
    """Remembers passages: runs of four non-empty lines, and single lines of 160 characters or more.

    `clean` returns the text without the lines of passages that were seen before, or "" when more than
    half of it was seen. Feed held-out documents first, then the training documents share nothing with them.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def clean(self, text: str) -> str:
        lines = text.splitlines()
        shingles = _shingles(lines)
        drop = {number for digest, numbers in shingles if digest in self.seen for number in numbers}
        if sum(len(lines[number]) for number in drop) > len(text) / 2:
            return ""
        self.seen.update(digest for digest, _ in shingles)
        if not drop:
            return text
        return "\n".join(line for number, line in enumerate(lines) if number not in drop) + "\n"
