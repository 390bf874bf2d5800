"""Evaluations of the tiny model that save their state after every small chunk, and end before they are done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_lm
from saekernels.eval import evaluate
from saekernels.eval.report.report import Report
from saekernels.eval.store import window_files
from saekernels.eval.store.run_folder import Workspace


def in_small_chunks(positions: int, set_value: Callable[[object, str, object], None] = setattr) -> None:
    """Chunks of about so many positions, and state saved after each; a test gives `monkeypatch.setattr`."""
    set_value(window_files, "CHUNK_POSITIONS", positions)
    set_value(window_files, "_CONTEXTS", 0)
    set_value(Workspace.__init__, "__defaults__", (0.0,))


def after(steps: int, stop: Callable[[], object]) -> Callable[[int, int], None]:
    """A `progress` that calls `stop` at its step of that number."""
    seen = 0

    def progress(done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if seen == steps:
            stop()

    return progress


def run(folder: Path | None, **options: Any) -> Report:
    """The tiny model, SAEs and documents, evaluated in that folder."""
    given = {"model": tiny_lm.trained_model(), "tokenizer": tiny_lm.tokenizer(), "saes": tiny_lm.saes()}
    given |= {"documents": tiny_lm.documents(), "bootstrap": 5, "checkpoint": folder}
    return evaluate(**{**given, **options})


def begin(folder: Path, steps: int) -> None:
    """`run` as far as that step, where Ctrl-C ends it."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, progress=after(steps, interrupt))


def figures(report: Report) -> dict[str, Any]:
    """All of the report but how it was run."""
    return {**report.to_dict(), "run": None}
