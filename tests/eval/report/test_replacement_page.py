"""The page of layers replaced together has the figures of their record, which is what the schema says."""

from __future__ import annotations

import copy
import itertools
import json
import re
from typing import Any

import jsonschema
import pytest

from places import ROOT
from reports import Page
from saekernels.display.numbers import readable, signed
from saekernels.eval import replacement_schema
from saekernels.eval.report.replacement.page import reading, replacement_page

RESULTS = ROOT / "benchmarks" / "results"
DOMAINS = ("code", "<law> & [red]", "prose")
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=y>\"'&\u2028"


def made(layers: int = 4) -> dict[str, Any]:
    """A record with every part, whose figures all differ."""
    numbers = itertools.count(1)

    def figure() -> dict[str, Any]:
        value = next(numbers) / 100
        return {"value": value, "ci95": [value - 0.003, value + 0.005]}

    def run(name: str) -> dict[str, Any]:
        figures = {key: figure() for key in ("delta_ce", "kl", "top1", "top1_unsure")}
        over = {} if name == "joint" else {"over_joint": figure()}
        ranks = {"ranks": [3, 4] * (layers // 2)} if name.startswith("affine") else {}
        domain = {"domain": name.partition("@")[2]} if "@" in name else {}
        return {"run": name, "meaning": f"what {name} is", "ce": 3.0, **figures, **over, **ranks, **domain}

    whole = ["joint", "teacher_forced", "own", "cross", "error", "zero", "mean", "permuted"]
    whole += ["affine", "affine_full", "affine_across", "beside"]
    parts = [*(f"first_{n}" for n in range(1, layers)), *(f"without_{n}" for n in range(layers))]
    narrow = [f"{run}@{domain}" for domain in DOMAINS for run in ("joint", "affine")]
    keys = ("fvu_joint", "fvu_teacher_forced", "fvu_drift", "l0_joint", "l0_teacher_forced")
    costs = ("replaced", "replacement", "beside", "affine")
    sides = ("inside", "outside", "whole_inside", "whole_outside", "price")
    axes = {"domain": DOMAINS, "position": ("1-3", "4-15")}
    return {
        "schema": 2,
        "model": "a <b> model",
        "context": 24,
        "replacement": "cross-layer transcoder",
        "documents": {"fitted": 5, "measured": 4},
        "tokens": 1000,
        "unsure_tokens": 100,
        "clean_ce": 2.9,
        "runs": [run(name) for name in (*whole, *parts, *narrow)],
        "compounding": figure(),
        "layers": [
            {"layer": n, "site": f"model.layers.{n}.mlp@module", "latents": 9, "used_joint": 8}
            | {"used_teacher_forced": 7}
            | {key: next(numbers) / 1000 for key in keys}
            for n in range(layers)
        ],
        "l0": {"joint": {"latents": 8.0, "pairs": 20.0}, "teacher_forced": {"latents": 9.0, "pairs": 21.0}},
        "accounting": {
            name: {"parameters": 1000 * next(numbers), "flops_per_token": 2e4 * next(numbers)} for name in costs
        },
        "strata": {
            axis: [
                {"name": name, "documents": 2, "tokens": 500, "ce": 3.0}
                | {"runs": {name: {"delta_ce": figure(), "top1": figure()} for name in whole}}
                for name in names
            ]
            for axis, names in axes.items()
        },
        "extrapolation": {
            "rows": [
                dict(zip(("run", "like", "domain"), (name, *name.split("@")), strict=True))
                | {"positions": 1_200, **{side: figure() for side in sides}}
                for name in narrow
            ],
            "transfer": [
                {"run": run, "from": [*DOMAINS, None], "on": list(DOMAINS)}
                | {"delta_ce": [[figure() for _ in DOMAINS] for _ in range(len(DOMAINS) + 1)]}
                for run in ("joint", "affine")
            ],
        },
        "mask": "the mask",
        "unsure_below": 0.8,
        "seed": 0,
        "bootstrap": {"samples": 20, "unit": "document", "level": 0.95},
        "notes": ["a note with [brackets]"],
        "versions": {"saekernels": "0"},
        "run": {"device": "cpu", "passes": 9, "seconds": 1.0, "command": "saekernels eval --clt <x>"},
    }


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return made()


@pytest.fixture(scope="module")
def page(record: dict[str, Any]) -> Page:
    return Page(replacement_page(record))


def test_the_record_is_what_the_schema_says(record: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(replacement_schema())
    jsonschema.validate(record, replacement_schema())
    shipped = [path for path in RESULTS.rglob("*cross-layer*.json") if "runs" in json.loads(path.read_text())]
    assert shipped
    for path in shipped:
        jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), replacement_schema())
    for change in ("runs", "extrapolation", "accounting"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**record, change: [{}]}, replacement_schema())
    lacking = copy.deepcopy(record)
    del lacking["runs"][0]["delta_ce"]["ci95"]
    with pytest.raises(jsonschema.ValidationError, match="ci95"):
        jsonschema.validate(lacking, replacement_schema())


def test_the_page_shows_the_figures_of_the_record(record: dict[str, Any], page: Page) -> None:
    runs = {row["run"]: row for row in record["runs"]}

    def rows(section: str) -> dict[str, list[str]]:
        return {row[0].text: [cell.text for cell in row] for row in page.tables[section][1:]}

    def shown(one: dict[str, Any]) -> str:
        return "{} [{}, {}]".format(*map(signed, (one["value"], *one["ci95"])))

    joint, baselines = rows("joint-beside-teacher-forced"), rows("against-honest-baselines")
    assert list(joint) == ["joint", "teacher forced", "own", "cross", "error", "beside"]
    for name, cells in (*joint.items(), *baselines.items()):
        assert shown(runs[name.replace(" ", "_")]["delta_ce"]) in cells, name
    assert set(baselines) == {"joint", "beside", "affine full", "affine", "affine across", "permuted", "mean", "zero"}
    layers = rows("layer-by-layer")
    for layer in range(4):
        assert shown(runs[f"first_{layer + 1}" if layer < 3 else "joint"]["delta_ce"]) in layers[str(layer)]
        assert shown(runs[f"without_{layer}"]["over_joint"]) in layers[str(layer)]
    assert f"{record['layers'][2]['fvu_joint']:.3f}" in rows("reconstruction-by-layer")["2"]
    strata = rows("by-stratum")
    for one in record["strata"]["domain"]:
        assert shown(one["runs"]["joint"]["delta_ce"]) in strata[f"domain {one['name']}"]
    narrow = rows("inside-one-domain-and-elsewhere")
    for one in record["extrapolation"]["rows"]:
        assert narrow[one["run"]][2] == f"{one['positions']:,}"
        assert [shown(one[name]) for name in ("inside", "outside")] == narrow[one["run"]][3:5]
    assert shown(record["extrapolation"]["rows"][0]["price"]) == narrow[record["extrapolation"]["rows"][0]["run"]][-1]
    costs = rows("parameters-and-compute")
    for name, one in record["accounting"].items():
        assert readable(one["parameters"]) in costs[name.replace("_", " ")]


def test_the_matrix_has_every_domain_from_and_on(record: dict[str, Any], page: Page) -> None:
    lines = page.tables["from-domain-to-domain"]
    at = 0
    for one in record["extrapolation"]["transfer"]:
        assert [cell.text for cell in lines[at][1:]] == [f"on {name}" for name in one["on"]]
        for source, figures, row in zip(one["from"], one["delta_ce"], lines[at + 1 :], strict=False):
            assert row[0].text == (source or "everything")
            for name, figure, cell in zip(one["on"], figures, row[1:], strict=True):
                assert cell.text.startswith(signed(figure["value"]))
                assert ("strong" in [tag for tag, _ in cell.inside]) == (name == source)
        at += 1 + len(one["from"])
    assert at == len(lines)


def test_the_page_stands_alone(record: dict[str, Any]) -> None:
    text = replacement_page(record)
    assert text.count("<svg") == text.count("</svg>") > 20
    assert not re.search(r"<(link|img|iframe|object|form)\b|@import|url\((?!#)", text)
    assert "currentColor" in text
    assert "#010203" not in text
    assert "{" not in reading(record)
    assert reading(record).startswith("Replacing 4 layers by a cross-layer transcoder raises the loss from ")
    assert json.loads(Page(text).scripts[0]) == record


def test_little_is_enough_and_no_name_gets_out_of_its_place(record: dict[str, Any]) -> None:
    """One domain, no sources, figures that are missing; and markup where names are."""
    bare = copy.deepcopy(record)
    bare |= {"extrapolation": None, "strata": {}, "model": HOSTILE, "notes": [HOSTILE]}
    bare["runs"] = [row for row in bare["runs"] if row["run"] in ("joint", "teacher_forced", "zero")]
    bare["runs"][0]["delta_ce"] = {"value": None, "ci95": None}
    bare["layers"][0] |= {"site": HOSTILE, "fvu_joint": None}
    page = Page(replacement_page(bare))
    assert "not finite" in page.text
    assert set(page.tables) == {
        "joint-beside-teacher-forced",
        "against-honest-baselines",
        "reconstruction-by-layer",
        "parameters-and-compute",
    }
    assert len(page.scripts) == 2
    named = copy.deepcopy(record)
    named["strata"]["domain"][0]["name"] = named["extrapolation"]["transfer"][0]["on"][0] = HOSTILE
    named["extrapolation"]["transfer"][0]["from"][0] = named["extrapolation"]["rows"][0]["run"] = HOSTILE
    hostile = Page(replacement_page(named))
    assert {tag for tag, _ in hostile.elements} == {tag for tag, _ in Page(replacement_page(record)).elements}
    assert len(hostile.scripts) == 2
