"""Families of language models in transformers, against plain hooks and full logits; the benchmark goes through all."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from places import ROOT

# One of each make: rotary, absolute and ALiBi positions, experts, state spaces, hybrids, caps, scales, multimodal
# wrappers, decoders of encoder-decoders.
SLICE = (
    "llama", "gpt2", "bloom", "opt", "gemma2", "cohere", "granite", "recurrent_gemma", "mamba", "mixtral",
    "llama4_text", "bart", "bert", "xlnet", "xlm",
)  # fmt: skip
PAGE = ROOT / "docs/reference/models.md"


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
    assert re.fullmatch(r"right \(linear\) at `[\w.]+(\[batch=1\])?`", matrix.verdict(model_type))


@pytest.mark.slow
def test_no_model_is_wrong_or_ends_in_a_traceback(matrix: Any) -> None:
    verdicts = matrix.run_all(matrix.model_types())
    wrong = {name: one for name, one in verdicts.items() if one.startswith("WRONG")}
    assert not wrong
    assert sum(one.startswith("right") for one in verdicts.values()) > len(verdicts) // 2


def test_a_wrong_figure_is_seen(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = matrix.losses
    monkeypatch.setattr(matrix, "losses", lambda *args, **kwargs: right(*args, **kwargs) + 1e-3)
    assert matrix.verdict("llama").startswith("WRONG: ")


def test_a_model_whose_logits_hang_on_the_length_of_a_row_is_refused(matrix: Any) -> None:
    assert re.match(
        "refused: .*ProphetNet.* is not causal: what stands behind them moves", matrix.verdict("prophetnet")
    )


def test_rows_are_kept_as_they_come_and_not_made_again(
    matrix: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[list[str]] = []

    def batch(types: list[str], verdicts: dict[str, str], tell: Any) -> list[str]:
        made.append(types)
        verdicts[types[0]] = "right (linear)"
        tell(types[0], verdicts[types[0]])
        return types[1:]

    monkeypatch.setattr(matrix, "_run_batch", batch)
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    for types in (["llama"], ["llama", "gpt2"]):
        monkeypatch.setattr(sys, "argv", ["model_matrix.py", "--rows", str(rows), "--write", str(page), *types])
        assert matrix.main() == 0
    assert made == [["llama"], ["gpt2"]]
    assert [json.loads(line)["type"] for line in rows.read_text().splitlines()] == ["llama", "gpt2"]
    assert "In all 2 model types: 2 right." in page.read_text()


def test_the_page_has_a_row_for_every_type_of_its_version(matrix: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE))
    told = re.search(r"In all (\d+) model types: (\d+) right", text)
    assert told is not None
    assert (len(rows), sum(one.startswith("right") for one in rows.values())) == (int(told[1]), int(told[2]))
    assert not any(one.startswith("WRONG") for one in rows.values())
    if f"transformers {transformers.__version__}" in text:
        assert list(rows) == matrix.model_types()
