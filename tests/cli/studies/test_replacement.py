"""`saekernels eval --clt` and `--transcoders`: what is printed is what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import saekernels as sk
import tiny_lm
from cli import fails, run
from reports import Page
from saekernels.cli.commands.replacement import command as replacement
from saekernels.display.numbers import percent, signed
from saekernels.eval import replacement_schema

SITES = tuple(f"model.layers.{layer}.mlp@module" for layer in range(2))


def dictionary(path: Any, **options: Any) -> Any:
    """What the name says, without a file."""
    torch.manual_seed(1)
    if "plt" not in str(path):
        clt = sk.CrossLayerTranscoder(tiny_lm.WIDTH, 16, 2, sk.TopK(4))
        clt.sites = SITES
        return clt
    made = {site: sk.SAE(tiny_lm.WIDTH, 16, sk.TopK(4)) for site in SITES}
    return sk.TranscoderSet(list(made.values()), list(made))


@pytest.fixture
def command(good: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(replacement, "load_cross_layer", dictionary)
    return ["eval", "--model", str(good["model"]), "--data", str(good["data"]), "--bootstrap", "3", "--context", "12"]


def test_the_tables_show_the_figures_of_the_file(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    argv = [*command, "--clt", "clt", "--beside", "plt", "--json", str(out), "--leave-first", "1", "--leave-norm", "9"]
    argv += ["--domain", "all", "--sources", "--html", str(tmp_path / "o.html")]
    done = run(argv)
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    jsonschema.validate(found, replacement_schema())
    page = Page((tmp_path / "o.html").read_text())
    assert json.loads(page.scripts[0]) == found
    cells = page.column("joint-beside-teacher-forced", "ΔCE nats")
    assert cells[0].text.startswith(signed(found["runs"][0]["delta_ce"]["value"]))
    runs = [row["run"] for row in found["runs"]]
    assert f"clean and {len(runs)} runs, 6 of them for 2 domains to fit or select on" in done.err
    assert found["run"]["passes"] == 2 + len(runs)
    assert found["run"]["command"] == f"saekernels {' '.join(argv)}"
    assert "Left as they are, in every run: the first of each window" in found["mask"]
    lines = [line.split() for line in done.out.splitlines()]
    for row in found["runs"]:
        line = next(line for line in lines if line[:2] == [row["run"], signed(row["delta_ce"]["value"])])
        assert percent(row["top1"]["value"]) in line
    assert [row["name"] for row in found["strata"]["domain"]] == ["code", "prose"]
    first, second = (row["l0_joint"] for row in found["layers"])
    assert found["l0"]["joint"] == pytest.approx({"latents": first + second, "pairs": 2 * first + second})
    assert 0 < found["l0"]["beside"]["latents"] == found["l0"]["beside"]["pairs"] <= 8
    assert found["accounting"]["beside"]["parameters"] == 2 * (2 * 16 * 32 + 16 + 32)
    assert "affine_across@prose" in done.out


def test_transcoders_alone_have_no_parts(command: list[str], tmp_path: Path) -> None:
    done = run([*command, "--transcoders", "plt", "--no-affine", "--json", str(tmp_path / "o.json")])
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "o.json").read_text())
    whole = ["joint", "teacher_forced", "error", "zero", "mean", "permuted"]
    assert [row["run"] for row in found["runs"]] == [*whole, "joint@prose"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--clt", "plt"], "--clt plt: it holds transcoders, one for each layer; give --transcoders"),
        (["--clt", "a", "--transcoders", "plt"], "--clt and --transcoders: one is replaced at a time"),
        (["--clt", "a", "--tasks", "ioi"], "--tasks: not with --clt, whose layers are replaced together"),
        (["--clt", "a", "--baselines", "zero"], "--baselines: not with --clt"),
        (["--clt", "a", "--control", "random_decoder"], "--control: not with --clt"),
        (["--sources"], "--sources: needs --clt or --transcoders, which it is about"),
        (["--clt", "a", "--sites", SITES[0]], "need one for each of 2 layers"),
    ],
)
def test_refused(changes: list[str], message: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, [*command, *changes])
