"""The command line's inputs: models that do not fit their config, empty names, and what is said of each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_lm
from cli import arguments, fails, run
from saekernels import example
from saekernels.backends import registry
from saekernels.cli import main
from saekernels.cli.entry import build_parser
from saekernels.cli.options import source
from saekernels.cli.options.arguments import as_typed
from saekernels.cli.options.models import ModelNames, load_model
from saekernels.eval import InputError

EVAL_HELP = "saekernels eval --help"
EMPTY_NAMES = ("--model", "--tokenizer", "--data", "--json", "--html")


def saved(folder: Path, **config: Any) -> Path:
    """The tiny model and its tokenizer with other values in config.json."""
    tiny_lm.model().save_pretrained(folder)
    tiny_lm.tokenizer().save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "layer_types": None, **config}))
    return folder


@pytest.mark.parametrize("option", EMPTY_NAMES)
def test_an_empty_name_is_an_error(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, ["eval", option, ""])
    assert line == f"saekernels eval: error: argument {option}: need a path or a name, got '' (see {EVAL_HELP})\n"


@pytest.mark.parametrize(("argv", "help_"), [(["eval"], EVAL_HELP), (["info"], "saekernels info --help"), ([], None)])
def test_an_unknown_option_points_to_the_help_that_knows(
    argv: list[str], help_: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, [*argv, "--shiny"])
    assert f"unrecognized arguments: --shiny (see {help_ or 'saekernels --help'})" in line


def test_a_switch_has_no_default_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--no-reuse compute layers before a run's first site every time output: --json" in text
    assert "False" not in text


def test_weights_that_the_config_has_no_place_for(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = saved(tmp_path / "short", num_hidden_layers=1)
    changes: dict[str, Any] = {"model": [model], "sae": [f"model.layers.0={files['model.layers.0']}"]}
    capsys.readouterr()
    line = fails(capsys, arguments(files, **changes))
    assert re.search("has 9 weights that its config has no place for, such as 'model.layers.1", line), line


def test_old_copies_of_buffers_are_no_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path / "old")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(ModelNames(str(folder)), torch.device("cpu"), "float32").model
    assert torch.equal(loaded.lm_head.weight, tiny_lm.model().lm_head.weight)
    tensors["model.layers.0.self_attn.masked_bias"] = torch.ones(())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has 1 weight that its config has no place for, such as .*masked_bias"):
        load_model(ModelNames(str(folder)), torch.device("cpu"), "float32")


WIDE, NO_HEADS = {"hidden_size": "wide"}, {"num_attention_heads": 0, "head_dim": None}


@pytest.mark.parametrize(
    ("option", "config", "message"),
    [
        ("model", WIDE, "--model: cannot load .*hidden_size.*"),
        ("model", NO_HEADS, "--model: cannot load .*ZeroDivisionError"),
        ("model", {"vocab_size": None}, "--model: cannot load"),
        ("tokenizer", WIDE, "cannot load a tokenizer from .*broken.*hidden_size.*str"),
        ("tokenizer", NO_HEADS, "cannot load a tokenizer from .*broken.*ZeroDivisionError"),
    ],
)
def test_broken_values_in_the_config_of_a_model_or_beside_a_tokenizer(
    option: str,
    config: dict[str, Any],
    message: str,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = saved(tmp_path / "broken", **config)
    capsys.readouterr()
    line = fails(capsys, arguments(files, **{option: [folder]}))
    assert re.search(message, line), line


@pytest.mark.parametrize("option", ["model", "tokenizer", "data", "json", "html"])
def test_a_name_that_is_too_long(
    option: str,
    files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fails(capsys, arguments(files, **{option: ["./" + "n" * 5000]}))
    fails(capsys, arguments(files, **{option: ["./a\0b"]}))


def test_the_device_without_values_is_refused(
    files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "--device: cannot use 'meta': its tensors hold no values" in fails(capsys, arguments(files, device=["meta"]))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ([], "saekernels example"),
        (["--data", "x.txt"], str(example.MODEL_DIR)),
        (["--sae", "model.layers.0=x"], str(example.MODEL_DIR)),
        (["--tokenizer", "x"], str(example.MODEL_DIR)),
        (["--model", "m", "--sae", "a=b", "--data", "x.txt"], "m"),
    ],
    ids=["nothing", "data", "saes", "tokenizer", "all"],
)
def test_only_the_whole_example_is_called_the_example(given: list[str], name: str) -> None:
    parsed = build_parser().parse_args(["eval", *given])
    assert source.fill_from_example(parsed) == (not given)
    assert parsed.model_name == name
    assert parsed.family is None, "only what was asked for is among the arguments"


@pytest.mark.parametrize("given", [["eval"], ["probe"], ["eval", "--clt", "x"]], ids=["eval", "probe", "clt"])
def test_a_wheel_without_the_example_says_where_it_is(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "MISSING", "the bundled example is not installed (pip install 'saekernels[example]')")
    done = run(given)
    assert done.code == 2
    assert "pip install 'saekernels[example]'); or give --model" in done.err.splitlines()[-1]


@pytest.mark.parametrize("command", [["eval", "--tokens", "100"], ["bench", "cpu", "--quick", "--ops", "decode"]])
def test_a_misspelt_simd_level_is_said(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, rather than hours on the slower backend."""
    monkeypatch.setattr(registry.load("cpu"), "available", lambda: "SAEKERNELS_SIMD: no level 'avx1024'")
    registry.select.cache_clear()
    monkeypatch.setattr(registry, "ENVIRONMENT_CHOICE", "auto")
    done = run(command)
    registry.select.cache_clear()
    assert done.code == 2
    assert done.err.splitlines()[-1].endswith("error: SAEKERNELS_SIMD: no level 'avx1024'")


@pytest.mark.parametrize(
    ("message", "typed", "told"),
    [
        ("context must be at least 3 tokens", [], "--context must be at least 3 tokens"),
        ("watches: no", ["--stop=x:3"], "--stop: no"),
        ("watches: no", ["--watch", "x", "--stop", "x"], "--watch and --stop: no"),
        ("sites: no", ["--sae", "x=y"], "--sae: no"),
        ("sites: no", ["--sites", "x"], "--sites: no"),
        ("steps: no", [], "steps: no"),
        ("site 'x': no", [], "site 'x': no"),
    ],
)
def test_errors_name_what_was_typed(message: str, typed: list[str], told: str) -> None:
    assert as_typed(message, {"--context", "--watch", "--stop", "--sae", "--sites"}, typed) == told
