"""`saekernels eval` on the bundled example: its claims, checked by the independent script on a few thousand tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import independent_spliced_ce
from saekernels import example
from saekernels.cli import main
from saekernels.eval import schema


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path: Path = tmp_path_factory.mktemp("example") / "report.json"
    assert main(["eval", "--tokens", "4000", "--bootstrap", "200", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_the_report_validates_and_covers_what_was_asked(report: dict[str, Any]) -> None:
    jsonschema.validate(report, schema())
    assert 4000 <= report["tokens"] < 4000 + report["context"]
    assert [row["site"] for row in report["sites"]] == list(example.SAE_DIRS)


def test_every_splice_costs_something_and_less_than_mean_ablation(report: dict[str, Any]) -> None:
    for row in report["sites"]:
        assert 0 < row["delta_ce"]["nats"] < row["ce"]["mean"] - row["ce"]["clean"], row["site"]
        assert row["delta_ce"]["ci95"][0] > 0, row["site"]
    worst_alone = max(row["delta_ce"]["nats"] for row in report["sites"])
    assert report["all_sites"]["delta_ce"]["nats"] > worst_alone


def test_an_independent_computation_gives_the_same_cost(report: dict[str, Any]) -> None:
    rows = independent_spliced_ce.compare(report, example.MODEL_DIR, example.EVAL_DATA, example.SAE_DIRS)
    assert set(rows) == {"clean", *example.SAE_DIRS}
    for site, (reported, found) in rows.items():
        assert reported == pytest.approx(found, abs=independent_spliced_ce.TOLERANCE), site
