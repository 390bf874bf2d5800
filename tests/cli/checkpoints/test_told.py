"""What a command is told of a checkpoint beside its path: --sae-format, --sae-config and so on, as `load` takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, distributed

import tiny_lm
import zoo
from cli import arguments, fails, files, run
from saekernels import example
from saekernels.cli import main
from saekernels.cli.options.checkpoint import in_options
from saekernels.cli.options.inputs import load_saes
from saekernels.parallel import LatentParallelSAE

SITE = tiny_lm.SITES[0]
SMALL = {"tokens": ["all"], "bootstrap": [0], "baselines": ["none"]}
SAID = {"activation": "topk", "k": 6, "apply_b_dec_to_input": True}
COMMANDS = ("eval", "breadth", "maps", "monitor")


def square() -> dict[str, Tensor]:
    """Tensors whose shapes do not say which side of W_enc is the latents': Qwen Scope's is the first, [F, d]."""
    d = tiny_lm.WIDTH
    encoder, decoder, biases = (zoo.random(*shape, seed=9) for shape in ((d, d), (d, d), (2, d)))
    return {"W_enc": encoder / d**0.5, "W_dec": decoder / d**0.5, "b_enc": 0.1 * biases[0], "b_dec": 0.1 * biases[1]}


def by_columns(x: Tensor) -> Tensor:
    """What a plain state dict of those tensors computes under the config SAID."""
    w = square()
    return zoo.topk((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 6) @ w["W_dec"] + w["b_dec"]


def by_rows(x: Tensor) -> Tensor:
    """What Qwen Scope does with them for k = 6: the best as they are, without a ReLU, and nothing subtracted."""
    w = square()
    best = (pre := x @ w["W_enc"].T + w["b_enc"]).topk(6, dim=-1)
    return torch.zeros_like(pre).scatter(-1, best.indices, best.values) @ w["W_dec"].T + w["b_dec"]


def replaced(x: Tensor, by: Any, touched: Tensor) -> Tensor:
    return torch.where(touched[..., None], by(x), x)


@torch.no_grad()
def delta_ce(replacement: Any) -> float:
    """Nats per token that the replacement costs at SITE, by own windows, a hook and full logits."""
    model, tokenizer, special = tiny_lm.model(), tiny_lm.tokenizer(), torch.tensor([0, 1, 2])
    losses: dict[str, list[Tensor]] = {"clean": [], "spliced": []}
    for document in tiny_lm.documents():
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), 23):
            window = torch.tensor([[0, *ids[start : start + 23]]])
            touched = ~torch.isin(window, special)
            kept = touched[0, :-1] & touched[0, 1:]
            for name, by in (("clean", lambda x: x), ("spliced", replacement)):

                def hook(module: Any, given: Any, out: Tensor, by: Any = by, touched: Tensor = touched) -> Tensor:
                    return replaced(out, by, touched)

                handle = model.get_submodule(SITE).register_forward_hook(hook)
                logits = model(input_ids=window).logits[0, :-1].double()
                handle.remove()
                losses[name].append(F.cross_entropy(logits, window[0, 1:], reduction="none")[kept])
    return float(torch.cat(losses["spliced"]).mean() - torch.cat(losses["clean"]).mean())


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    """The tiny model and its data, a file that fits two formats, and a config that says its maths."""
    paths = files(tmp_path)
    torch.save(square(), tmp_path / "mine.pt")
    (tmp_path / "said.json").write_text(json.dumps(SAID))
    return {**paths, "mine": tmp_path / "mine.pt", "said": tmp_path / "said.json", "out": tmp_path / "out.json"}


def measured(given: dict[str, Path], sae: str, **told: Any) -> float:
    """ΔCE at SITE, as `saekernels eval` reports it."""
    ended = run(arguments(given, sae=[sae], json=[given["out"]], **SMALL, **told))
    assert ended.code == 0, ended.err
    (row,) = json.loads(given["out"].read_text())["sites"]
    assert row["site"] == SITE
    return float(row["delta_ce"]["nats"])


def test_a_file_that_fits_two_formats_is_refused_and_told_which_it_costs_what_it_costs(
    given: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sae = f"{SITE}={given['mine']}"
    for told in ({}, {"sae_config": [given["said"]]}, {"sae_k": [6]}):
        line = fails(capsys, arguments(given, sae=[sae], **told))
        assert f"--sae {sae}: {given['mine']}: which side of W_enc is the latents' cannot be told from" in line
        assert "; say --sae-format 'Qwen Scope' where rows are, --sae-format 'state dict' where columns are" in line
    columns = measured(given, sae, sae_format=["state dict"], sae_config=[given["said"]])
    assert columns == pytest.approx(delta_ce(by_columns), abs=1e-5)
    rows = measured(given, sae, sae_format=["qwen scope"], sae_k=[6])
    assert rows == pytest.approx(delta_ce(by_rows), abs=1e-5)
    assert abs(rows - columns) > 0.01


def test_a_config_may_say_the_site(given: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = {"sae_format": ["state dict"], "sae_config": [given["said"]]}
    line = fails(capsys, arguments(given, sae=[str(given["mine"])], **told))
    assert f"--sae {given['mine']}: no place for it in this model: its files do not say where" in line
    given["said"].write_text(json.dumps({**SAID, "hook_name": SITE}))
    assert measured(given, str(given["mine"]), **told) == pytest.approx(delta_ce(by_columns), abs=1e-5)


def test_a_scale_that_no_file_holds(given: dict[str, Path]) -> None:
    zoo.change_config(given[SITE], normalize_activations="expected_average_only_in")
    sae = tiny_lm.sae(0)

    def scaled(x: Tensor) -> Tensor:
        return sae(x * 0.5) / 0.5

    found = measured(given, f"{SITE}={given[SITE]}", sae_input_scale=[0.5])
    assert found == pytest.approx(delta_ce(scaled), abs=1e-5)
    assert abs(found - delta_ce(sae)) > 0.01


def test_what_is_told_is_told_of_every_sae(given: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    both = [f"{site}={given['mine']}" for site in tiny_lm.SITES]
    told: dict[str, Any] = {"sae_format": ["state dict"], "sae_config": [given["said"]]}
    assert main(arguments(given, sae=both, json=[given["out"]], **SMALL, **told)) == 0
    rows = {row["site"]: row["delta_ce"]["nats"] for row in json.loads(given["out"].read_text())["sites"]}
    assert rows[SITE] == pytest.approx(delta_ce(by_columns), abs=1e-5)
    assert rows.keys() == set(tiny_lm.SITES)
    capsys.readouterr()
    folder = given[tiny_lm.SITES[1]]
    other = f"{tiny_lm.SITES[1]}={folder}"
    line = fails(capsys, arguments(given, sae=[both[0], other], **told))
    assert line.endswith(f"--sae {other}: {folder}/cfg.json: 'k' is 8, but elsewhere 6\n")
    line = fails(capsys, arguments(given, sae=[other], sae_format=["gemma scope"]))
    assert f"--sae {other}: --sae-format: got 'gemma scope', but {folder} has none of its files" in line
    line = fails(capsys, arguments(given, sae=[other], sae_config=[given["said"]]))
    assert f"--sae {other}: --sae-config: got ['activation', 'apply_b_dec_to_input', 'k'], but " in line
    assert "is of 'SAELens' (sae_1), which has its own: cfg.json" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_takes_an_sae_is_told(
    command: str, given: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures are those of the same SAE in a format that says all by itself."""
    own = {"monitor": ["--watch", f"{SITE}:3"], "breadth": ["--ranks", "1"]}
    argv = [command, "--model", str(given["model"]), "--data", str(given["data"]), "--tokens", "all"]
    argv += [*own.get(command, []), "--sae"]
    said = ["--format", "state dict", "--config", str(given["said"])]
    assert main(["convert", str(given["mine"]), str(folder := given["out"].with_name("same")), *said]) == 0
    capsys.readouterr()
    assert main([*argv, *(f"{site}={folder}" for site in tiny_lm.SITES)]) == 0
    wanted = capsys.readouterr().out
    argv += [f"{site}={given['mine']}" for site in tiny_lm.SITES]
    assert "which side of W_enc is the latents'" in fails(capsys, argv)
    assert main([*argv, *(word.replace("--", "--sae-") for word in said)]) == 0
    assert capsys.readouterr().out == wanted


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("option", "value"),
    [("--sae-format", "SAELens"), ("--sae-config", "x.json"), ("--sae-k", "3"), ("--sae-input-scale", "2"),
     ("--sae-revision", "main")],
)  # fmt: skip
def test_nothing_is_told_of_saes_that_are_not_given(
    command: str, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = ["--watch", f"{SITE}:3"] if command == "monitor" else []
    wanted = f"saekernels {command}: error: {option}: it is about the checkpoints of --sae; give those as well\n"
    assert fails(capsys, [command, *watch, option, value]) == wanted
    assert fails(capsys, [command, *watch, "--data", str(example.EVAL_DATA), option, value]) == wanted


@pytest.mark.parametrize(
    ("argv", "option"),
    [(["convert", "SAE", "out"], "--"), (["info", "SAE"], "--"), (["eval", "--sae", f"{SITE}=SAE"], "--sae-")],
    ids=["convert", "info", "eval"],
)
def test_a_revision_of_what_is_on_the_disk(
    argv: list[str], option: str, given: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [word.replace("SAE", str(given["mine"])) for word in argv]
    said = fails(capsys, [*argv, f"{option}revision", "step1000"])
    assert f"{option}revision: got 'step1000' for {given['mine']}, which is on this machine's disk" in said


@pytest.mark.parametrize(
    ("argv", "option"),
    [(["convert", "SAE", "out"], "--"), (["info", "SAE"], "--"), (["eval", "--sae", f"{SITE}=SAE"], "--sae-")],
    ids=["convert", "info", "eval"],
)
def test_a_name_that_is_no_formats_and_a_file_that_is_no_config(
    argv: list[str], option: str, given: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [word.replace("SAE", str(given["mine"])) for word in argv]
    line = fails(capsys, [*argv, f"{option}format", "sae-lens"])
    assert line.startswith(f"saekernels {argv[0]}: error: {option}format: got 'sae-lens', need one of 'SAELens', 'spar")
    for content, told in (("[1]", "needs an object of fields, got [1]"), ("{", "Expecting property name enclosed in")):
        given["said"].write_text(content)
        line = fails(capsys, [*argv, f"{option}config", str(given["said"])])
        assert f"error: {option}config: " in line
        assert told in line
    line = fails(capsys, [*argv, f"{option}config", "nowhere.json"])
    assert f"error: {option}config: cannot read nowhere.json: " in line


def test_convert_and_info_are_told_the_same(
    given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--format", "state dict", "--config", str(given["said"])]
    advice = "; say --format 'Qwen Scope' where rows are, --format 'state dict' where columns are"
    assert advice in fails(capsys, ["info", str(given["mine"]), *told[2:]])
    assert advice in fails(capsys, ["convert", str(given["mine"]), str(tmp_path / "new"), *told[2:]])
    assert main(["info", str(given["mine"]), *told]) == 0
    assert "activation       TopK(k=6)\n" in (said := capsys.readouterr().out)
    assert "pre-bias         b_dec is subtracted from the input\n" in said
    assert main(["convert", str(given["mine"]), str(tmp_path / "new"), *told]) == 0
    weights = load_file(tmp_path / "new" / "sae_weights.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in square().items())
    config = json.loads((tmp_path / "new" / "cfg.json").read_text())
    assert {name: config[name] for name in ("architecture", "k", "apply_b_dec_to_input")} == {
        "architecture": "topk", "k": 6, "apply_b_dec_to_input": True,
    }  # fmt: skip


def test_shards_are_told_too(given: dict[str, Path]) -> None:
    """What --latent-parallel loads: each process its own rows, of the same function."""
    told = {"format": "state dict", "config": SAID, "k": None, "input_scale": None, "revision": None}
    pairs = [(SITE, str(given["mine"]))]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        group = distributed.group.WORLD
        cpu = torch.device("cpu")
        shard = load_saes(pairs, tiny_lm.model(), lambda _: cpu, "float32", told, group)[SITE]
        x = zoo.random(9, tiny_lm.WIDTH, seed=5)
        assert isinstance(shard, LatentParallelSAE)
        torch.testing.assert_close(shard(x).detach(), by_columns(x))
    finally:
        distributed.destroy_process_group()


def test_messages_name_the_options_of_the_command() -> None:
    for message, told in (
        ("format: got 'x', need one of", "--sae-format: got 'x', need one of"),
        (
            "input_scale: got 0, need a positive finite number",
            "--sae-input-scale: got 0, need a positive finite number",
        ),
        ("say it by config=..., or by format=...", "say it by --sae-config ..., or by --sae-format ..."),
        ("Pass input_scale= unless it was", "Pass --sae-input-scale unless it was"),
        ("k is in no file; give k, or keep", "k is in no file; give --sae-k, or keep"),
        ("/a/format=x/k: got 3, need TopK(k=4)", "/a/format=x/k: got 3, need TopK(k=4)"),
    ):
        assert in_options(message, "sae-") == told
