"""Cross-layer dictionaries that a weakly causal crosscoder's files hold, and those whose TopK runs over all layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import saekernels as sk
import tiny_lm
from crosscoder_by_hooks import FAST, SITES, D, documents
from layouts import gemma_scope, made
from reports import Page
from saekernels.errors import InputError
from saekernels.eval import replacement_schema
from saekernels.eval.report.replacement.page import replacement_page
from saekernels.eval.studies.crosslayer import fits
from saekernels.eval.studies.crosslayer.measure import evaluate_replacement


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_lm.model(num_hidden_layers=2)


def test_a_weakly_causal_one_runs_jointly(model: Any, tmp_path: Path) -> None:
    gemma_scope(made(D, 8, 2), tmp_path)
    clt = sk.load_cross_layer(tmp_path)
    sites = ["model.layers.0", "model.layers.1"]
    options = {**FAST, "bootstrap": 0}
    found = evaluate_replacement(model, replacement=clt, documents=documents(), sites=sites, **options)
    assert (found["replacement"], found["causal"]) == ("weakly causal crosscoder", True)
    names = [row["run"] for row in found["runs"]]
    assert names[:2] == ["joint", "teacher_forced"]
    assert not {"affine_full", "affine_across", "affine_shared"} & set(names)
    jsonschema.validate(json.loads(json.dumps(found)), replacement_schema())
    text = Page(replacement_page(found)).text
    assert "Replacing 2 layers by a weakly causal crosscoder " in text
    assert "joint" in text
    assert "is compounding" in text


def test_topk_over_all_layers_is_teacher_forced(model: Any) -> None:
    """With a k that drops nothing it is what a ReLU makes, in the run that both have."""
    sites = [f"{site}@module" for site in SITES]
    relu, across = (
        sk.CrossLayerTranscoder(D, 8, 2, one, across_layers=one != sk.ReLU()) for one in (sk.ReLU(), sk.TopK(16))
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for mine, other in zip(relu.parameters(), across.parameters(), strict=True):
            other.copy_(mine.normal_(std=0.3))
    options = {**FAST, "documents": documents()[:6], "sites": sites, "affine": False, "bootstrap": 0}
    plain, found = (evaluate_replacement(model, replacement=one, **options) for one in (relu, across))
    assert (found["replacement"], found["causal"]) == ("cross-layer transcoder with TopK over all layers", False)
    jsonschema.validate(json.loads(json.dumps(found)), replacement_schema())
    runs = {row["run"]: row["ce"] for row in found["runs"]}
    assert list(runs) == ["teacher_forced", "only_0", "only_1", "error", "zero", "mean", "permuted"]
    for row in plain["runs"]:
        if row["run"] in ("teacher_forced", "zero", "mean"):
            assert runs[row["run"]] == pytest.approx(row["ce"], abs=1e-6)
    assert found["l0"]["teacher_forced"] == pytest.approx(plain["l0"]["teacher_forced"])
    with pytest.raises(InputError, match="beside: a cross-layer transcoder with TopK over all layers cannot run"):
        evaluate_replacement(model, replacement=relu, beside=across_at(across, sites), **options)


def across_at(clt: sk.CrossLayerTranscoder, sites: list[str]) -> sk.CrossLayerTranscoder:
    clt.sites = tuple(sites)
    return clt


def test_maps_of_clean_reads_across_wide_layers(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where layers are told all of what earlier ones read, in fewer numbers, it is the same map."""
    across = sk.CrossLayerTranscoder(D, 8, 2, sk.TopK(3), across_layers=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in across.parameters():
            parameter.normal_(std=0.3)
    options = {**FAST, "documents": documents()[:6], "sites": [f"{site}@module" for site in SITES], "bootstrap": 0}
    found = []
    for most in (fits.MOST_WIDTH, 2 * D - 1):
        monkeypatch.setattr(fits, "MOST_WIDTH", most)
        found.append(evaluate_replacement(model, replacement=across, **options))
    exact, told = ({row["run"]: row["ce"] for row in one["runs"]} for one in found)
    assert told["affine_across"] == pytest.approx(exact["affine_across"], abs=1e-5)
    assert abs(exact["affine_across"] - exact["affine"]) > 1e-4
    assert "combinations at most of what earlier ones read" in " ".join(found[1]["notes"])
