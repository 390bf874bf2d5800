"""Trainers side by side, of benchmarks/trainers, at a small size: every tool trains and goes on alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from places import ROOT

pytestmark = pytest.mark.peers
ONE = {"sae_lens": "batch_topk", "dictionary_learning": "batch_topk", "sparsify": "multi_topk"}


def test_one_class_of_each_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ONE:
        pytest.importorskip(tool)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "trainers"))
    import side_by_side_runs
    import train_side_by_side

    for tool, kind in ONE.items():
        monkeypatch.setattr(side_by_side_runs.TOOLS[tool], "KINDS", {kind: side_by_side_runs.TOOLS[tool].KINDS[kind]})
    monkeypatch.setattr(side_by_side_runs, "BATCHES", 4)
    path = tmp_path / "record.json"
    train_side_by_side.main(["--steps", "12", "--dead-after", "3", "--latents", "256", "--json", str(path)])
    record = json.loads(path.read_text())
    assert {one["tool"]: one["class"] for one in record["classes"]} == ONE
    for one in record["classes"]:
        assert (one["taken"], one["own_steps"]) == (12, {})
        assert max(one["difference"], one["resumed"]["difference"]) < 1e-4
        assert one["dead"][0] > 0
        assert one["steps_with_other_dead"] == one["resumed"]["steps_with_other_dead"] == 0
        # Of dictionary_learning's trainers moments and counts are in no file; sparsify's repeats a batch.
        assert (one["resumed"]["difference_from_unbroken"] < 1e-6) == (one["tool"] == "sae_lens")
