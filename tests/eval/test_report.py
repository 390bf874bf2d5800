"""The report: JSON by its schema, the HTML page, the table and its sentence."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from saekernels.eval import Report, schema
from saekernels.eval.report.data import CrossEntropy, DeltaCE, DomainFigures, LossRecovered, SiteFigures
from saekernels.eval.report.page import page
from saekernels.eval.report.terminal import print_report, reading


def site(name: str, delta: float | None = 0.25, architecture: str = "topk") -> SiteFigures:
    known = delta is not None
    ce = CrossEntropy(3.0, 3.0 + delta if known else None, 9.0, 7.0)
    change = DeltaCE(delta, (0.2, 0.3) if known else None, 0.1, (0.08, 0.12))
    recovered = LossRecovered(0.96, None, (0.95, 0.97), None)
    domains = {
        label: DomainFigures(500, 4, ce, dataclasses.replace(change, nats=share), 0.1, 0.8, recovered)
        for label, share in (("code", 0.1), ("<law> & [red]", 0.4))
    }
    return SiteFigures(
        name, architecture, 64, 8.0, 0.1, 0.0, ce, change, 0.2, (0.1, 0.3), 0.8, None, recovered, domains
    )


def report(**changes: Any) -> Report:
    rows = [site("model.layers.0", 0.05), site("model.layers.1")]
    plain: dict[str, Any] = {
        "model": "a <b> model",
        "tokens": 1000,
        "documents": 8,
        "nbytes": 4000,
        "sites": rows,
        "all_sites": site("all", 0.5, "joint"),
        "context": 24,
        "prefix": [0],
        "mask": "the mask",
        "seed": 0,
        "bootstrap": 100,
        "notes": ["a note with [brackets]"],
        "run": {"device": "cpu"},
        **changes,
    }
    return Report(**plain)


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


def test_the_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report().write_html(path)
    text = path.read_text()
    assert text.count("<svg") == 4
    assert text.count("</svg>") == 4
    assert not re.search(r"<(script|link|img|iframe)\b|@import", text)
    addresses = set(re.findall(r"https?://[^\"'\s<>]+", text))
    assert all(a.startswith(("http://www.w3.org/", "https://www.w3.org/")) for a in addresses), addresses
    assert "a &lt;b&gt; model" in text
    assert "<b>" not in text
    assert "&lt;law&gt; &amp; [red]" in text
    assert "currentColor" in text
    assert "#010203" not in text
    assert '>+0.500 <span class="ci">[+0.200, +0.300]<' in text
    assert page(report()) == text, "the same report gives the same page"


def test_the_page_survives_missing_figures() -> None:
    text = page(report(sites=[site("model.layers.0", None)], all_sites=site("all", None, "joint")))
    assert "not finite" in text
    assert "<svg" in text


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
