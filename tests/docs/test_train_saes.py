"""examples/train_saes.py as a visitor runs it: killed and gone on with, and what it writes is evaluated."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import cli
import saekernels as sk
import tiny_lm
from places import EXAMPLES
from saekernels.cli import main

SITES = tiny_lm.SITES
SIZES = ("--latents", "64", "--k", "4", "--context", "24", "--batch", "50", "--threads", "2", "--lr", "1e-2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = cli.files(tmp_path_factory.mktemp("files"))
    tiny_lm.trained_model().save_pretrained(made["model"])
    return made


@pytest.fixture
def trained(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A function that runs the example in this process, and returns its folder."""

    def run(*options: str, out: str = "out") -> Path:
        monkeypatch.setattr(sys, "argv", command(files, tmp_path / out, *options))
        runpy.run_path(str(EXAMPLES / "train_saes.py"), run_name="__main__")
        return tmp_path / out

    return run


def command(files: dict[str, Path], out: Path, *options: str) -> list[str]:
    where = ("--model", str(files["model"]), "--data", str(files["data"]), "--out", str(out))
    return [str(EXAMPLES / "train_saes.py"), *where, *SIZES, *options]


def weights(out: Path) -> dict[str, str]:
    """The checksum of each file of weights."""
    found = sorted(out.rglob("*.safetensors"))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def loaded(folder: Path) -> sk.SAE:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sk.load(folder)


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_bits(files: dict[str, Path], tmp_path: Path, trained) -> None:  # type: ignore[no-untyped-def]
    options = ("--tokens", "4_000", "--seeds", "0", "1", "--leave-first", "1", "--leave-norm", "1.5")
    options = (*options, "--dead-after", "100")
    whole = trained(*options, out="whole")
    killed = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, *command(files, killed, *options, "--save-every", "0.001")]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not (killed / "checkpoint.pt").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, process.stderr.read() if process.stderr else ""
    step = int(torch.load(killed / "checkpoint.pt", weights_only=True)["numbers"]["step"])
    assert 0 < step < 80
    assert not weights(killed)
    assert trained(*options, out="killed") == killed
    assert list(weights(killed)) == [f"{site}/seed-{seed}/sae_weights.safetensors" for site in SITES for seed in (0, 1)]
    assert weights(killed) == weights(whole)
    assert not (killed / "checkpoint.pt").exists()


def test_variants_share_a_pass_and_are_those_of_runs_of_their_own(trained) -> None:  # type: ignore[no-untyped-def]
    same = ("--tokens", "300", "--sites", SITES[0])
    out = trained(*same, "--k", "3", "5", "--freeze", "none", "decoder", "--seeds", "0", "1")
    folders = [f"k-{k}/freeze-{what}/seed-{seed}" for k in (3, 5) for what in ("none", "decoder") for seed in (0, 1)]
    assert list(weights(out / SITES[0])) == sorted(f"{folder}/sae_weights.safetensors" for folder in folders)
    alone = trained(*same, "--k", "5", "--freeze", "decoder", "--seeds", "1", out="alone")
    (one,) = weights(alone / SITES[0]).values()
    assert weights(out / SITES[0])["k-5/freeze-decoder/seed-1/sae_weights.safetensors"] == one
    assert len(set(weights(out).values())) == len(folders)
    labels = json.loads((out / "train.json").read_text())["summary"]["fvu"]
    assert list(labels) == [f"{SITES[0]}, {folder.replace('/seed-', ', seed ')}" for folder in folders]
    assert len(set(labels.values())) == len(folders)


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
def test_what_it_writes_is_evaluated(activation: str, files: dict[str, Path], trained) -> None:  # type: ignore[no-untyped-def]
    out = trained("--activation", activation, "--tokens", "4_000", "--leave-first", "1", "--leave-norm", "10")
    saes = {site: loaded(out / site) for site in SITES}
    report = sk.evaluate(
        tiny_lm.trained_model(), tiny_lm.tokenizer(), saes, tiny_lm.documents(), baselines=["zero"], bootstrap=0
    )
    for row in report.sites:
        assert row.fvu < 0.5
        assert row.delta_ce.nats < 0.5 * (row.ce.zero - row.ce.clean)
        assert row.l0 == pytest.approx(4, rel=0.25)
    log = json.loads((out / "train.json").read_text())
    assert log["summary"]["finished"]
    assert log["log"][-1]["tokens"] == log["summary"]["tokens"] == pytest.approx(4_000, abs=50)
    assert log["summary"]["tokens_per_second"] > 0
    assert 0 < log["summary"]["share_of_model_forward"] < 1
    losses = [entry["fvu"][f"{SITES[0]}, seed 0"] for entry in log["log"]]
    assert losses[-1] < 0.5 * losses[0]


def test_the_config_says_how_it_was_trained(files: dict[str, Path], trained) -> None:  # type: ignore[no-untyped-def]
    out = trained("--tokens", "100", "--sites", "model.layers.*@input", "--leave-first", "2", "--freeze", "decoder")
    metadata = loaded(out / "model.layers.1@input").metadata
    assert metadata is not None
    assert (metadata.reads, metadata.writes, metadata.context) == ("model.layers.1@input", "model.layers.1@input", 24)
    assert (metadata.model, metadata.dataset) == (str(files["model"]), str(files["data"]))
    assert metadata.ignored == ()
    assert metadata.other["training_tokens"] == pytest.approx(100, abs=25)
    said: Any = metadata.other["training"]
    assert (said["seed"], said["leave_first"], said["leave_norm"]) == (0, 2, None)
    assert (said["recipe"]["freeze"], said["recipe"]["k"], len(said["scales"])) == ("decoder", 4, 2)


def test_transcoders_find_their_place_by_themselves(files: dict[str, Path], trained, capsys) -> None:  # type: ignore[no-untyped-def]
    out = trained("--tokens", "3_000", "--sites", "model.layers.*.mlp@module", "model.layers.0 -> model.layers.1")
    names = [f"model.layers.{number}.mlp@module" for number in (0, 1)]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["model.layers.0--model.layers.1", *names]
    capsys.readouterr()
    paths = [str(out / name) for name in (*names, "model.layers.0--model.layers.1")]
    report = out / "report.json"
    argv = cli.arguments(files, sae=paths, bootstrap=["0"], baselines=["zero"], json=[str(report)])
    assert main(argv) == 0
    rows = {row["site"]: row for row in json.loads(report.read_text())["sites"]}
    ends = [f"model.layers.{number}.mlp@input -> model.layers.{number}.mlp" for number in (0, 1)]
    assert list(rows) == [*ends, "model.layers.0 -> model.layers.1"]
    for row in rows.values():
        assert row["fvu"] < 0.6, {name: row["fvu"] for name, row in rows.items()}
    assert loaded(out / names[0]).pre_bias_kind == "none"


def test_a_dictionary_of_activations_needs_enough_of_them(trained) -> None:  # type: ignore[no-untyped-def]
    out = trained("--tokens", "200", "--decoder", "activations", "--freeze", "decoder")
    assert loaded(out / SITES[0]).W_dec.shape == (64, tiny_lm.WIDTH)
    with pytest.raises(SystemExit, match=r"error: model.layers.0: got \d+ first activations that pass the mask, need"):
        trained("--tokens", "100", "--decoder", "activations", "--latents", "400", out="other")


def test_mistakes_are_one_line(trained, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    for options, out, words in (
        (("--sites", "bogus"), "never", "--sites: LlamaForCausalLM has no module 'bogus'"),
        (("--warmup", "3"), "never", "--warmup: got 3.0, need a share of the steps, from 0 to 1"),
        ((), "file", f"--out: got {tmp_path / 'file'}, need a folder that can be written"),
    ):
        with pytest.raises(SystemExit, match=f"^train_saes.py: error: {words}"):
            trained("--tokens", "100", *options, out=out)
        assert not (tmp_path / "never").exists()
    with pytest.raises(SystemExit, match=r"^train_saes.py: error: --k: got 4, need 1 to 2, the number of latents$"):
        trained("--latents", "2")
    told = r"^train_saes.py: error: --sites: no module of LlamaForCausalLM fits 'h\.\*'$"
    with pytest.raises(SystemExit, match=told):
        trained("--sites", "h.*")
    out = trained("--tokens", "100")
    with pytest.raises(SystemExit, match=rf"error: --out: {out} holds a finished run; name another folder$"):
        trained("--tokens", "100")


@pytest.mark.peers
def test_saelens_computes_the_same(trained) -> None:  # type: ignore[no-untyped-def]
    sae_lens = pytest.importorskip("sae_lens")
    for activation in ("topk", "batch_topk"):
        folder = trained("--activation", activation, "--tokens", "500", out=activation) / SITES[0]
        theirs = sae_lens.SAE.load_from_disk(folder, device="cpu")
        x = torch.randn(50, tiny_lm.WIDTH, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(loaded(folder)(x), theirs(x), rtol=1e-4, atol=1e-4)
