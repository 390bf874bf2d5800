"""Runs of words that held-out and training text share, however the lines are broken."""

from __future__ import annotations

from collections.abc import Iterator

WORDS = 13


def _runs(lines: list[str]) -> Iterator[tuple[str, set[int]]]:
    """Each run of WORDS words, in lower case, and the numbers of its lines."""
    words = [(word.lower(), number) for number, line in enumerate(lines) for word in line.split()]
    for start in range(len(words) - WORDS + 1):
        run = words[start : start + WORDS]
        yield " ".join(word for word, _ in run), {number for _, number in run}


class KnownRuns:
    """The runs of 13 words of the held-out documents."""

    def __init__(self) -> None:
        self.runs: set[str] = set()

    def add(self, text: str) -> None:
        self.runs.update(run for run, _ in _runs(text.splitlines()))

    def shared(self, text: str) -> int:
        """How many runs of the text are known."""
        return sum(run in self.runs for run, _ in _runs(text.splitlines()))

    def strip(self, text: str) -> str:
        """The text without the lines of known runs, or "" when more than half of it is known."""
        lines, left = text.splitlines(), len(text) / 2
        while drop := {number for run, numbers in _runs(lines) if run in self.runs for number in numbers}:
            left -= sum(len(lines[number]) for number in drop)
            if left < 0:
                return ""
            # What stood on both sides of a dropped line makes new runs.
            lines = [line for number, line in enumerate(lines) if number not in drop]
        return "\n".join(lines) + "\n"
