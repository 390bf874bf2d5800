"""`saekernels convert`, and formats other than SAELens' on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import saekernels as sk
import zoo
from cli import fails
from saekernels.cli import main
from zoo import D, random


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    return fails(capsys, ["convert", *argv])


def test_convert_writes_what_saelens_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.gemma(tmp_path / "gemma")
    assert main(["convert", str(tmp_path / "gemma"), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    assert "JumpReLU" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu"
    assert config["metadata"]["converted_from"] == str(tmp_path / "gemma")
    x = random(9, D, seed=5)
    torch.testing.assert_close(sk.load(tmp_path / "out")(x), sk.load(tmp_path / "gemma")(x))


def test_options_reach_the_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = {"W_enc": random(40, D), "W_dec": random(D, 40), "b_enc": random(40), "b_dec": random(D)}
    torch.save(w, tmp_path / "layer3.sae.pt")
    source, out = str(tmp_path / "layer3.sae.pt"), str(tmp_path / "out")
    assert "k is in no file; give k" in refused(capsys, source, out)
    assert not Path(out).exists()
    assert main(["convert", source, out, "--k", "4", "--dtype", "bfloat16"]) == 0
    sae = sk.load(out)
    assert sae.activation == sk.TopK(4)
    assert sae.W_enc.dtype == torch.bfloat16
    capsys.readouterr()
    config = {"expansion_factor": 4, "norm_activation": "dataset-wise", "act_fn": "relu"}
    zoo.llama(tmp_path / "llama", config)
    assert main(["convert", str(tmp_path / "llama"), str(tmp_path / "a")]) == 0
    assert "Note: " in (told := capsys.readouterr().out)
    assert "their average norm is in no file" in told
    assert main(["convert", str(tmp_path / "llama"), str(tmp_path / "b"), "--input-scale", "0.5"]) == 0
    x = random(9, D, seed=5)
    torch.testing.assert_close(
        sk.load(tmp_path / "b")(x), sk.load(tmp_path / "llama", input_scale=0.5)(x), rtol=1e-4, atol=1e-4
    )


def test_what_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.gemma(tmp_path / "gemma")
    source = str(tmp_path / "gemma")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    assert "exists; give a new folder" in refused(capsys, source, str(tmp_path / "full"))
    assert "exists; give a new folder" in refused(capsys, source, str(tmp_path / "full" / "x"))
    assert "does not exist" in refused(capsys, "./missing", str(tmp_path / "out"))
    assert "need at least 1, got 0" in refused(capsys, source, str(tmp_path / "out"), "--k", "0")
    assert "need a positive number, got 'x'" in refused(capsys, source, str(tmp_path / "out"), "--input-scale", "x")
    assert "says itself how many" in refused(capsys, source, str(tmp_path / "out"), "--k", "3")
    (tmp_path / "gemma" / "params.npz").write_bytes(b"PK")
    assert "damaged or not a numpy archive" in refused(capsys, source, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full" / "x").read_text() == "mine"
