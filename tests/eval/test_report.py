"""The report: JSON by its schema, the table and its sentence."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from reports import report, site
from saekernels.eval import Report, schema
from saekernels.eval.report.page import page
from saekernels.eval.report.terminal import print_report, reading


def shown(value: Report, width: int = 140, terminal: bool = False) -> str:
    stream = io.StringIO()
    print_report(value, Console(file=stream, width=width, force_terminal=terminal, color_system=None))
    return stream.getvalue()


def test_json_validates_and_keeps_the_issue_fields(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    path = tmp_path / "report.json"
    report().write_json(path)
    data = json.loads(path.read_text())
    jsonschema.validate(data, schema())
    assert data == report().to_dict()
    assert data["schema"] == 1
    assert data["sites"][0]["delta_ce"] == {
        "nats": 0.05,
        "ci95": [0.2, 0.3],
        "bits_per_byte": 0.1,
        "bits_per_byte_ci95": [0.08, 0.12],
    }
    assert set(data["sites"][0]) == set(data["all_sites"])
    assert data["all_sites"]["domains"]["code"]["tokens"] == 500


def test_the_schema_refuses_what_is_wrong() -> None:
    good = report().to_dict()
    for path, value in ((("schema",), 2), (("sites",), []), (("sites", 0, "ce", "clean"), "3"), (("extra",), 1)):
        bad: Any = json.loads(json.dumps(good))
        inner = bad
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema())


def test_a_number_that_is_not_finite_never_reaches_the_file(tmp_path: Path) -> None:
    broken = report(all_sites=dataclasses.replace(site("all"), kl=float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        broken.write_json(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_the_table_shows_the_loss_first_and_every_row() -> None:
    text = shown(report())
    lines = text.splitlines()
    assert lines[0] == "a <b> model: 1,000 tokens of 8 documents, clean CE 3.000 nats per token"
    header = next(line for line in lines if "ΔCE nats" in line)
    assert header.split()[0] == "site"
    assert header.index("ΔCE") < header.index("KL") < header.index("FVU")
    row = next(line for line in lines if "all together" in line)
    assert row.split()[2:5] == ["+0.500", "[+0.200,", "+0.300]"]
    assert "model.layers.1" in text
    assert text.count("<law> & [red]") == 2
    assert "a note with [brackets]" in text


def test_one_is_not_many() -> None:
    one = report(tokens=1, documents=1)
    assert "a <b> model: 1 token of 1 document, clean" in shown(one)
    assert "1 token of 1 document, windows" in page(one)


def test_a_narrow_terminal_loses_columns_not_names() -> None:
    text = shown(report(), width=80, terminal=True)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "model.layers.1" in text
    assert "+0.250 [+0.200, +0.300]" in text
    assert "…" not in text


def test_the_sentence_says_what_it_costs() -> None:
    assert reading(report()) == (
        "Splicing all 2 SAEs together raises the loss from 3.000 to 3.500 nats per token (+0.500 [+0.200, +0.300]; "
        "+0.100 bits per byte); mean ablation gives 7.000; alone, a site costs +0.050 (model.layers.0) to +0.250 "
        "(model.layers.1); the worst domain is <law> & [red] with +0.400."
    )
    lower = site("model.layers.0", -0.05)
    assert "Splicing model.layers.0 lowers the loss" in reading(report(sites=[lower], all_sites=lower))
    assert "not finite" in reading(report(all_sites=site("all", None, "joint")))
