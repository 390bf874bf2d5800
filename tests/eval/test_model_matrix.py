"""Families of language models in transformers, against plain hooks and full logits; the benchmark goes through all."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from places import ROOT

# One of each make: rotary, absolute and ALiBi positions, experts, state spaces, hybrids, caps, scales, multimodal
# wrappers, decoders of encoder-decoders.
SLICE = (
    "llama", "gpt2", "bloom", "opt", "gemma2", "cohere", "granite", "recurrent_gemma", "mamba", "mixtral",
    "llama4_text", "bart", "bert",
)  # fmt: skip


@pytest.fixture(scope="module")
def matrix() -> Any:
    """The command's module, which finds its own helper beside it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("model_matrix")
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("model_type", SLICE)
def test_figures_are_those_of_hooks_and_full_logits(matrix: Any, model_type: str) -> None:
    assert matrix.verdict(model_type) == "right (linear)"


@pytest.mark.slow
def test_no_model_is_wrong_or_ends_in_a_traceback(matrix: Any) -> None:
    verdicts = matrix.run_all(matrix.model_types())
    wrong = {name: one for name, one in verdicts.items() if one.startswith("WRONG")}
    assert not wrong
    assert sum(one.startswith("right") for one in verdicts.values()) > len(verdicts) // 2


def test_a_wrong_figure_is_seen(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = matrix.cross_entropy
    monkeypatch.setattr(matrix, "cross_entropy", lambda *args, **kwargs: right(*args, **kwargs) + 1e-3)
    assert matrix.verdict("llama").startswith("WRONG: clean ")
