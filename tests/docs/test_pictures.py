"""The pictures and README's table are what the script draws from the committed records, and say what those hold."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

import cli
from places import ROOT
from saekernels.eval import schema

IMAGES = ROOT / "docs" / "images"
EVALUATION = ROOT / "benchmarks" / "results" / "example" / "2026-11-26-eval.json"
SITES = ROOT / "benchmarks" / "results" / "smollm2-135m" / "sites.json"
RESULTS = ROOT / "docs" / "results.md"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn")
    subprocess.run([sys.executable, str(ROOT / "tools" / "pictures"), "--out", str(out)], check=True)
    return out


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return json.loads(EVALUATION.read_text(encoding="utf-8"))


def texts(picture: str) -> list[str]:
    tree = ElementTree.parse(IMAGES / picture)
    return [element.text or "" for element in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_the_committed_pictures_are_what_the_script_draws(drawn: Path) -> None:
    fresh = {path.name: path.read_bytes() for path in (drawn / "docs" / "images").iterdir()}
    assert fresh == {path.name: path.read_bytes() for path in IMAGES.iterdir()}
    assert set(fresh) == {
        f"{name}-{theme}.svg"
        for name in ("argument", "speed", "how", "sites", "training")
        for theme in ("light", "dark")
    }


def test_the_page_of_results_is_what_the_script_writes(drawn: Path) -> None:
    assert (drawn / "docs" / "results.md").read_text(encoding="utf-8") == RESULTS.read_text(encoding="utf-8")


def test_the_page_of_results_shows_every_site_of_the_report() -> None:
    """And the sentence on top what all of them together cost, with its interval."""
    report, page = json.loads(SITES.read_text(encoding="utf-8")), RESULTS.read_text(encoding="utf-8")
    jsonschema.validate(report, schema())
    assert len(report["sites"]) == 30

    def shown(cost: dict[str, Any]) -> str:
        return f"{cost['nats']:+.3f} [{cost['ci95'][0]:+.3f}, {cost['ci95'][1]:+.3f}]"

    table = page.partition("\n## Every layer\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if re.match(r"\| (\d+|all) \|", line)]
    assert [row[0] for row in rows] == [*(f"| {number}" for number in range(30)), "| all"]
    for row, site in zip(rows, [*report["sites"], report["all_sites"]], strict=True):
        assert row[1] == shown(site["delta_ce"])
        assert row[2:6] == [
            f"{site['kl']:.3f}", f"{100 * site['top1_agreement']:.1f} %", f"{site['l0']:.0f}", f"{site['fvu']:.3f}"
        ]  # fmt: skip
    for row, step in zip(rows, report["cumulative"], strict=False):
        assert row[-1] == shown(step["delta_ce"]) + " |"
    assert page.split("\n\n")[1].startswith("**SAEs in place of the residual stream after all 30 layers cost ")
    assert shown(report["all_sites"]["delta_ce"]) in page.split("\n\n")[1]
    for part in report["all_sites"]["domains"].values():
        assert shown(part["delta_ce"]) in page
    picture = texts("sites-light.svg")
    assert f"{report['all_sites']['delta_ce']['nats']:+.2f} nats" in picture


def test_readme_begins_with_the_real_model() -> None:
    """Its first picture is of the record, and so are the sentence's figures: the median alone, all, a guess."""
    report, counted = (
        json.loads((SITES.parent / name).read_text(encoding="utf-8")) for name in (SITES.name, "ngrams.json")
    )
    assert re.findall(r"docs/images/(\w+)-light", README)[0] == "sites"
    sentence = README.partition("</picture>")[2].split("\n\n")[1]
    alone = statistics.median(site["delta_ce"]["nats"] for site in report["sites"])
    together = report["all_sites"]
    assert re.findall(r"[+-]\d\.\d+|[+-]\d\d\.\d+", sentence) == [
        f"{alone:+.3f}",
        f"{together['delta_ce']['nats']:+.3f}",
    ]
    assert "more than the mean activation in all their places, and worse than a guess" in sentence
    baselines = json.loads(SITES.with_name("baselines.json").read_text(encoding="utf-8"))
    assert together["delta_ce"]["ci95"][0] > baselines["all_sites"]["baselines"]["mean"]["delta_ce"]
    assert counted["models"][0]["all_minus"]["ci95"][0] > 0 < together["ce"]["spliced"] - counted["models"][0]["loss"]


@pytest.mark.parametrize("path", sorted(path.name for path in SITES.parent.iterdir()))
def test_the_records_of_the_real_model_name_no_machine(path: str) -> None:
    assert not re.search(r"(/home|/root|/tmp|/work)/", (SITES.parent / path).read_text(encoding="utf-8"))


def test_compare_reads_the_reports_of_the_real_model() -> None:
    """Each beside itself, and the controls' trained SAE beside the same one again."""
    reports = [path for path in SITES.parent.iterdir() if '"documents_table"' in path.read_text(encoding="utf-8")]
    assert len(reports) >= 4
    for path in reports:
        done = cli.run(["compare", str(path), str(path)])
        assert (done.code, "B - A [95 %]" in done.out) == (0, True), (path.name, done.err)
    again = cli.run(["compare", *(str(SITES.with_name(name)) for name in ("controls.json", "shuffled.json"))])
    assert re.search(r"model\.layers\.14#none-0 +0\.447 +0\.447 +\+0\.000", again.out)


def test_the_records_of_the_real_model_are_few_enough() -> None:
    assert sum(path.stat().st_size for path in SITES.parent.iterdir()) < 15e6


def test_the_table_of_speed_is_what_the_script_writes(drawn: Path) -> None:
    assert (drawn / "README.md").read_text(encoding="utf-8") == README
    assert len(re.findall(r"\d\.\d\dx", README)) >= 6


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_argument_shows_the_figures_of_the_report(theme: str, report: dict[str, Any]) -> None:
    shown = texts(f"argument-{theme}.svg")
    for row in [*report["sites"], report["all_sites"]]:
        assert f"{row['delta_ce']['nats']:+.3f}" in shown
        assert f"{100 * row['loss_recovered']['mean']:.1f} %" in shown
    random = report["all_sites"]["baselines"]["random"]["delta_ce"]
    assert any(f"{random:+.3f}" in text for text in shown)


def test_bars_are_as_long_as_their_numbers(report: dict[str, Any]) -> None:
    """Of ΔCE: widths are in proportion, to the tenth of a pixel that is written."""
    tree = ElementTree.parse(IMAGES / "argument-light.svg")
    bars = [
        float(one.get("width", "")) for one in tree.iter("{http://www.w3.org/2000/svg}rect") if one.get("rx") == "2"
    ]
    costs = [row["delta_ce"]["nats"] for row in [*report["sites"], report["all_sites"]]]
    assert len(bars) == len(costs)
    for bar, cost in zip(bars, costs, strict=True):
        assert bar / bars[-1] == pytest.approx(cost / costs[-1], abs=5e-4)


def test_the_record_of_the_example_is_a_report_and_names_no_machine(report: dict[str, Any]) -> None:
    jsonschema.validate(report, schema())
    assert report["model"] == "saekernels example"
    assert not re.search(r'"[^"]*(/home|/root|/tmp|/work)', EVALUATION.read_text(encoding="utf-8"))


def test_readme_shows_the_figures_of_the_report(report: dict[str, Any]) -> None:
    """The result in six lines: ΔCE with its interval, KL, top-1 and loss recovered of each site."""
    lines = re.findall(r"^(?:model\.layers|all together).*$", README, re.MULTILINE)
    rows = [*report["sites"], report["all_sites"]]
    assert len(lines) == len(rows) == 5
    for line, row in zip(lines, rows, strict=True):
        low, high = row["delta_ce"]["ci95"]
        expected = [f"{row['delta_ce']['nats']:+.3f}", f"[{low:+.3f},", f"{high:+.3f}]", f"{row['kl']:.3f}"]
        expected += [f"{100 * row['top1_agreement']:.1f}%", f"{100 * row['loss_recovered']['mean']:.1f}%"]
        assert line.split()[-6:] == expected


def test_the_picture_of_a_training_says_every_loss_of_its_record() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "example" / "2026-11-27-over.json").read_text())
    tree = ElementTree.parse(IMAGES / "training-light.svg")
    told = next(tree.iter("{http://www.w3.org/2000/svg}desc")).text or ""
    for row in record["checkpoints"]:
        losses = row["losses"]["clean_ce"], row["losses"]["targets"]["all"]["spliced_ce"]
        assert f"{row['seen']:,} tokens: {losses[0]:.2f}, {losses[1]:.2f} with SAEs" in told
    assert {"general", "ceiling", "chance"} < set(texts("training-light.svg"))


def test_pictures_need_no_network_and_no_script() -> None:
    for path in IMAGES.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text
        assert "<script" not in text
