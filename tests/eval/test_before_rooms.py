"""A run's folder and its report, made before the modules moved into rooms: both still serve.

They are of two layers of the bundled example on 600 tokens. What is compared here is read back, and not computed again:
it does not depend on the machine. The model's config is pinned, as transformers' own fields change with its version.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels as sk
from places import TESTS
from saekernels import example
from saekernels.cli import main
from saekernels.eval import InputError, schema
from saekernels.eval.report.compare import compare, read_report
from saekernels.eval.store.fingerprints import of_model, of_sae, of_tokenizer
from saekernels.eval.text.windows import Tokens, chosen
from tiny_lm import one_thread  # noqa: F401

BEFORE = TESTS / "eval" / "data" / "before_rooms"
SITES = ("model.layers.1", "model.layers.2")
MADE_NOW = ("run", "versions")


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, dict[str, Any]]:
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR)
    model.config.to_dict = lambda: {"model_type": "llama"}
    saes = {site: sk.load(example.SAE_DIRS[site]) for site in SITES}
    return model, AutoTokenizer.from_pretrained(example.MODEL_DIR), saes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BEFORE / "run", tmp_path / "run"))


def report() -> dict[str, Any]:
    return json.loads((BEFORE / "report.json").read_text(encoding="utf-8"))


def again(parts: tuple[Any, Any, dict[str, Any]], folder: Path | None, **changes: Any) -> tuple[dict[str, Any], int]:
    """The report as data, and how many rows of tokens the model read of the text; its own checks read others."""
    model, tokenizer, saes = parts
    options = {"tokens": 600, "context": 128, "bootstrap": 100, "baselines": ("zero", "mean", "random"), **changes}
    documents = sk.load_documents([str(example.EVAL_DATA)])
    windows = [w for _, own in chosen(documents, Tokens(tokenizer, 128), options["tokens"], 0) for w in own]
    text = {tuple(window.ids[:16].tolist()) for window in windows}
    rows: list[bool] = []

    def look(module: Any, given: tuple[Any, ...]) -> None:
        rows.extend(tuple(row[:16]) in text for row in given[0].tolist())

    handle = model.get_input_embeddings().register_forward_pre_hook(look)
    try:
        found = sk.evaluate(model, tokenizer, saes, documents, checkpoint=folder, model_name="example", **options)
    finally:
        handle.remove()
    return found.to_dict(), sum(rows)


def figures(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in MADE_NOW}


def test_a_folder_of_before_goes_on_without_a_pass_to_the_same_figures(parts: Any, folder: Path) -> None:
    found, rows = again(parts, folder)
    assert rows == 0
    assert figures(found) == figures(report())
    assert found["run"]["layer_reuse"] == report()["run"]["layer_reuse"]


def test_a_folder_of_before_is_refused_to_another_evaluation(parts: Any, folder: Path) -> None:
    with pytest.raises(InputError, match="belongs to another evaluation: seed was 0, is 1"):
        again(parts, folder, seed=1)
    with pytest.raises(InputError, match="belongs to another evaluation: tokens was 600, is 500"):
        again(parts, folder, tokens=500)


def test_the_fingerprints_are_those_of_before(parts: Any) -> None:
    config = json.loads((BEFORE / "run" / "config.json").read_text(encoding="utf-8"))
    model, tokenizer, saes = parts
    assert config["layout"] == 3
    assert of_model(model) == config["model"]
    assert of_tokenizer(tokenizer) == config["tokenizer"]
    assert {site: of_sae(sae) for site, sae in saes.items()} == config["saes"]


def test_a_report_of_before_is_read_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(BEFORE / "report.json")
    jsonschema.validate(report(), schema())
    assert main(["compare", path, path]) == 0
    assert "2 documents" in capsys.readouterr().out
    found = compare(read_report(path), read_report(path), ("a", "b"))
    assert [row.target for row in found.rows] == [*SITES, "all"]
    costs = [*(row["delta_ce"]["nats"] for row in report()["sites"]), report()["all_sites"]["delta_ce"]["nats"]]
    assert [row.delta_a for row in found.rows] == pytest.approx(costs, abs=1e-12)
    assert all(row.difference == 0 for row in found.rows)


def test_a_new_run_has_the_figures_of_before(parts: Any) -> None:
    found, rows = again(parts, None)
    assert rows >= len(report()["documents_table"]["tokens"])
    _same(figures(found), figures(report()), "report")


def _same(new: Any, old: Any, where: str) -> None:
    """The same names and texts, and numbers within what another machine's rounding may change."""
    if isinstance(old, dict):
        assert set(new) >= set(old), where
        for name, value in old.items():
            _same(new[name], value, f"{where}.{name}")
    elif isinstance(old, list):
        assert len(new) == len(old), where
        for number, (one, other) in enumerate(zip(new, old, strict=True)):
            _same(one, other, f"{where}[{number}]")
    elif isinstance(old, float):
        assert new == pytest.approx(old, rel=1e-4, abs=1e-5), where
    else:
        assert new == old, where
