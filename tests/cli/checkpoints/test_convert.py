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
from zoo import D, F, random


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
    w = {**zoo.LINEAR, "b_dec": random(D)}
    source, out = str(zoo.dictionary(tmp_path / "old", w, {"dict_class": "AutoEncoderTopK"})), str(tmp_path / "out")
    assert "'k' is None, need a positive integer" in refused(capsys, source, out)
    assert not Path(out).exists()
    assert main(["convert", source, out, "--k", "4", "--dtype", "bfloat16"]) == 0
    sae = sk.load(out)
    assert sae.activation == sk.TopK(4)
    assert sae.W_enc.dtype == torch.bfloat16
    capsys.readouterr()
    config = {"expansion_factor": F / D, "norm_activation": "dataset-wise", "act_fn": "relu"}
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


def test_the_output_says_what_was_folded_and_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    norms = {"in": 4.0, "out": 2.0}
    config = {"d_sae": F, "jump_relu_threshold": 0.5, "dataset_average_activation_norm": norms, "twist": 1}
    zoo.llama(tmp_path / "llama", {**config, "sparsity_include_decoder_norm": True})
    source, out = tmp_path / "llama", tmp_path / "out"
    assert main(["convert", str(source), str(out)]) == 0
    note, made, *folded = capsys.readouterr().out.splitlines()
    assert note.startswith("Note: ")
    assert note.endswith("fields that are not known here were not used: 'twist' (1)")
    assert made.startswith(f"{out}: SAE(d_in=12, n_latents=40, JumpReLU(), pre_bias=none, normalization=Scale(factor=")
    assert folded == [
        "  decoder norms are folded into W_enc, b_enc and W_dec",
        "  the scale of the input, 0.866025, is folded into W_enc, W_dec and b_dec",
        "  fields that are not known here were neither used nor kept: 'twist'",
    ]
    with pytest.warns(UserWarning, match="'twist'"):
        theirs = sk.load(source)
    x = random(9, D, seed=5)
    torch.testing.assert_close(sk.load(out)(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert main(["convert", str(out), str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  written as it is"]


def test_the_model_and_the_place_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "gemma-scope-2b-it-transcoders" / "layer_7" / "width_16k" / "average_l0_9"
    zoo.gemma(place)
    assert main(["convert", str(place), str(tmp_path / "out")]) == 0
    assert "a transcoder of equal widths is written as 'jumprelu': the same function" in capsys.readouterr().out
    before, after = sk.load(place).metadata, sk.load(tmp_path / "out").metadata
    assert before is not None
    assert after is not None
    assert (after.model, after.reads, after.writes) == (before.model, before.reads, before.writes)
    assert after.sites == ("blocks.7.ln2.hook_normalized -> blocks.7.hook_mlp_out",)
    about = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert about == {
        "sae_lens_version": "6.0.0", "model_name": "google/gemma-2-2b-it", "hook_name": "blocks.7.ln2.hook_normalized",
        "hook_name_out": "blocks.7.hook_mlp_out", "converted_from": str(place),
    }  # fmt: skip


def test_what_saelens_cannot_express_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.openai(tmp_path / "7.pt", activation_state_dict={"k": 5, "postact_fn": "Identity"})
    coder = zoo.sparsify_folder(tmp_path / "coder", activation="groupmax")
    for source, lacks in ((tmp_path / "7.pt", "TopK without a ReLU"), (coder, "GroupMax")):
        told = refused(capsys, str(source), str(tmp_path / "out"))
        assert f"need an architecture of SAELens, which has none for {lacks}: standard, topk, " in told
        assert not (tmp_path / "out").exists()
