"""`saekernels probe` from the command line: the bundled sets, its JSON, its tables, and what it refuses."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli import commands, fails, labelled
from places import ROOT
from saekernels import example
from saekernels.cli import main

CODE = next(path for path in example.LABELLED if path.name.startswith("code"))
SITE = "model.layers.1"


def test_a_bundled_set_as_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "probe.json"
    argv = ["probe", "--sae", f"{SITE}={example.SAE_DIRS[SITE]}", "--labels", str(CODE), "--bootstrap", "50",
            "--latents", "5", "1", "5", "--position", "mean", "--json", str(out)]  # fmt: skip
    assert main(argv) == 0
    told = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["command"] == f"saekernels {' '.join(argv)}"
    assert (found["kind"], found["position"], found["latents"], found["seed"]) == ("probe", "mean", [1, 5], 0)
    (one,) = found["sets"]
    assert (one["name"], one["positive"], one["negative"], one["answers"]) == ("code", "prose", ["code"], None)
    sides = [one[side] for side in ("fitted_on", "tested_on")]
    assert sides == [{"positive": 96, "negative": 96, "groups": 48}, {"positive": 32, "negative": 32, "groups": 16}]
    (site,) = one["sites"]
    assert [row["method"] for row in site["methods"]] == [
        "activations", "reconstruction", "error", "1 latent", "5 latents",
    ]  # fmt: skip
    dense = site["methods"][0]
    assert dense["in"]["value"] > 0.95, "code and prose are told apart"
    assert dense["in"]["minus_dense"] == 0.0
    assert set(dense["out"]["domain"]["values"]) == {"python", "c", "shell", "sql"}
    assert dense["out"]["domain"]["values"]["sql"]["positive"] == 8
    for row in site["methods"]:
        figure = row["in"]
        assert figure["ci95"][0] <= figure["value"] <= figure["ci95"][1]
        cell = f"{figure['value']:.3f} [{figure['ci95'][0]:.3f}, {figure['ci95'][1]:.3f}]"
        assert cell in next(line for line in told.splitlines() if row["method"] in line and "[" in line)
    mean = f"{dense['in']['value']:.3f} / {dense['out']['domain']['value']:.3f}"
    assert f"activations {mean}, reconstruction" in told.replace("\n", " ")


def test_answers_are_shown_beside_the_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = next(path for path in example.LABELLED if path.name.startswith("truth"))
    lines = [line for line in gzip.decompress(truth.read_bytes()).decode().splitlines()
             if '"language": "en"' in line and '"template": "plain"' in line]  # fmt: skip
    small, out = tmp_path / "small.jsonl", tmp_path / "probe.json"
    small.write_text("\n".join(lines))
    sites = [f"{site}={path}" for site, path in list(example.SAE_DIRS.items())[1:3]]
    argv = ["probe", "--sae", *sites, "--labels", str(small), "--bootstrap", "20", "--latents", "1", "--json", str(out)]
    assert main(argv) == 0
    told = capsys.readouterr().out
    rows = json.loads(out.read_text())["sets"][0]["answers"]
    assert [row["splice"] for row in rows] == ["clean", *list(example.SAE_DIRS)[1:3], "all"]
    for row, name in zip(rows, ("(none)", *list(example.SAE_DIRS)[1:3], "all together"), strict=True):
        assert f"{row['own_score_auroc']['value']:.3f} [" in next(
            line for line in reversed(told.splitlines()) if line.startswith(name)
        )
    assert rows[0]["ce_answer"]["value"] - rows[0]["ce_foil"]["value"] == pytest.approx(
        -rows[0]["logit_difference"]["value"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--by", "mood"], "line 1 has nothing in the field 'mood' (--by); its fields: 'text', 'label', 'language'"),
        (["--label-field", "x"], "line 1 has nothing in the field 'x' (--label-field); its fields: 'text', 'label'"),
        (["--positive", "x"], "the field 'label' has no value 'x' (--positive); it has 'false', 'true'"),
        (["--group-field", "label"], "labels: labels: 0 positive texts held out, need at least 8 of each class"),
        (["--labels", "nowhere.csv"], "labels: nowhere.csv does not exist"),
        (["--latents", "65"], "error: --latents: model.layers.0 has 64, need 1 to as many, got 65"),
        (["--sae", "model.layers.9=x"], "--sae model.layers.9=x: "),
        (["--text-field", "body"], "line 1 has no text in the field 'body'; its fields: 'text', 'label', 'language'"),
    ],
)
def test_one_clear_line(
    changes: list[str], message: str, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = commands({**good, "labels": labelled(tmp_path)}, tmp_path)["probe"]
    assert message in fails(capsys, [*argv, *changes] if changes[0] != "--labels" else replaced(argv, changes))


def replaced(argv: list[str], changes: list[str]) -> list[str]:
    at = argv.index(changes[0])
    return [*argv[:at], *changes]


def test_two_sets_of_one_name(good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = labelled(tmp_path)
    (tmp_path / "other").mkdir()
    second = labelled(tmp_path / "other")
    argv = commands({**good, "labels": first}, tmp_path)["probe"]
    assert "labels: two files are named 'labels'" in fails(capsys, [*argv, str(second)])


def test_a_model_of_ones_own_needs_its_own_texts(capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, ["probe", "--model", "x", "--sae", "y=z"])
    assert "--model needs --sae SITE=PATH and --labels as well" in line


def test_the_script_writes_the_bundled_sets() -> None:
    before = {path: path.read_bytes() for path in example.LABELLED}
    code = "import runpy, sys; sys.argv[0] = 'tools/labelled_texts'; m = runpy.run_path('tools/labelled_texts'); "
    code += "import json; print(json.dumps({k: list(f()) for k, f in m['SETS'].items()}))"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    sets = json.loads(made.stdout)
    assert sorted(f"{name}.jsonl.gz" for name in sets) == [path.name for path in before]
    for path, content in before.items():
        lines = gzip.decompress(content).decode().splitlines()
        assert [json.loads(line) for line in lines] == sets[path.name.removesuffix(".jsonl.gz")]
