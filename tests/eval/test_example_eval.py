"""`saekernels eval` on the bundled example: its claims, checked by the independent script on a few thousand tokens."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import independent_spliced_ce
import saekernels as sk
from places import EXAMPLES
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


def loaded() -> tuple[Any, Any, dict[str, sk.SAE]]:
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR).eval()
    saes = {site: sk.load(path, dtype=model.dtype) for site, path in example.SAE_DIRS.items()}
    return model, AutoTokenizer.from_pretrained(example.MODEL_DIR), saes


@pytest.mark.slow
def test_batches_of_3_and_8_give_the_same_numbers() -> None:
    model, tokenizer, saes = loaded()
    documents = sk.load_documents([str(example.EVAL_DATA)])
    whole = {}
    for size in (3, 8):
        report = sk.evaluate(model, tokenizer, saes, documents, tokens=2000, batch_size=size, bootstrap=0)
        rows = [*report.sites, report.all_sites]
        whole[size] = [n for row in rows for n in (row.delta_ce.nats, *vars(row.ce).values(), row.kl, row.fvu, row.l0)]
    assert whole[8] == pytest.approx(whole[3], abs=1e-6)


@torch.inference_mode()
def test_the_error_term_at_every_layer_gives_the_clean_loss() -> None:
    model, tokenizer, saes = loaded()
    documents = list(sk.load_documents([str(example.EVAL_DATA)]))
    batch = torch.cat([tokenizer(one.text, return_tensors="pt").input_ids[:, :160] for one in documents[:40:5]])

    def loss() -> float:
        return float(F.cross_entropy(model(batch).logits[:, :-1].flatten(0, 1).double(), batch[:, 1:].flatten()))

    clean = loss()
    with sk.splice(model, saes, untouched=tokenizer.all_special_ids):
        assert loss() - clean > 0.1
    with sk.splice(model, saes, untouched=tokenizer.all_special_ids, error_term=True):
        assert loss() == pytest.approx(clean, abs=1e-5)


class _Balance(HTMLParser):
    """Every tag that is opened is closed, in order."""

    EMPTY = ("meta", "br", "path", "use", "rect", "img", "link", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "h2" in self.open:
            self.headings[-1] += data


@pytest.mark.slow
def test_the_whole_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, report = tmp_path / "page.html", tmp_path / "report.json"
    tasks = EXAMPLES / "tasks" / "brackets.yaml"
    argv = ["eval", "--tokens", "6000", "--bootstrap", "50", "--breadth", "--tasks", str(tasks)]
    assert main([*argv, "--html", str(page), "--json", str(report)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    text = page.read_text()
    balance = _Balance()
    balance.feed(text)
    assert balance.open == []
    assert balance.headings == [
        "Cost of each splice",
        "Effective compute",
        "Splicing layer after layer",
        "Against honest baselines",
        "Between the clean model and ablation",
        "By domain, all sites spliced",
        "By stratum",
        "Where the divergence is",
        "Narrow tasks beside the full distribution",
        "ΔCE against breadth",
        "From domain to domain",
        "How it was measured",
    ]
    assert text.count("<svg") > 50, "a piece of a chart in every row"
    assert "http://" not in re.sub(r'xmlns[:a-z]*="[^"]*"', "", text).replace("w3.org", "")
    data = json.loads(report.read_text())
    jsonschema.validate(data, schema())
    worth = data["extras"]["effective_compute"]["targets"]
    assert worth["clean"]["share"] == pytest.approx(1.0, abs=1e-3), "the family's last member is this model"
    shares = [worth[site]["share"] for site in (*example.SAE_DIRS, "all")]
    assert shares == sorted(shares, reverse=True)
    assert 0.1 < shares[-1] < 0.3
    low, high = worth["all"]["share_ci95"]
    assert low < shares[-1] < high
    assert "predicts like a model of" in told
    curve = [one["delta_ce"]["nats"] for one in data["cumulative"]]
    assert curve == sorted(curve)
    assert curve[-1] == data["all_sites"]["delta_ce"]["nats"]
    for row in data["sites"]:
        costs = {kind: one["delta_ce"] for kind, one in row["baselines"].items()}
        assert costs["random"] < row["delta_ce"]["nats"] * 1.2
        assert row["delta_ce"]["nats"] < costs["pca"] < costs["mean"]


@pytest.mark.slow
def test_a_family_that_nobody_asked_for_may_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """It was measured with other windows: a note, and an error where it was asked for."""
    small = ["eval", "--context", "3", "--tokens", "60", "--bootstrap", "0", "--baselines", "none", "--no-cumulative"]
    assert main(small) == 0
    told = capsys.readouterr()
    assert "Left out: family: measured with windows" in " ".join(told.out.split())
    assert "error" not in told.err
    assert main([*small, "--family", str(example.FAMILY)]) == 2
    assert "family: measured with windows of" in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_shows_that_narrow_probes_fail_outside(tmp_path: Path) -> None:
    out = tmp_path / "breadth.json"
    assert main(["breadth", "--tokens", "15000", "--bootstrap", "0", "--ranks", "1", "32", "--json", str(out)]) == 0
    levels = {level["level"]: level["methods"] for level in json.loads(out.read_text())["levels"]}
    token, everything = levels["token"], levels["everything"]
    for rank in ("rank 1", "rank 32"):
        assert token[rank]["inside"]["delta_ce"] < 0.5
        assert token[rank]["extrapolation_gap"] > 3.0
    assert token["rank 32"]["inside"]["delta_ce"] < everything["rank 32"]["inside"]["delta_ce"] / 3
    assert token["rank 1"]["inside"]["delta_ce"] < everything["rank 1"]["inside"]["delta_ce"] / 10
    assert abs(token["sae"]["extrapolation_gap"]) < 0.3
