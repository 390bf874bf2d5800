"""The command line: a whole run on a model from files, and every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

import independent_spliced_ce
import saekernels
import tiny_lm
from cli import arguments, fails
from saekernels.cli import main
from saekernels.eval import evaluate, load_documents, schema


def test_a_whole_run_gives_the_same_as_evaluate(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(files, json=[tmp_path / "o.json"], html=[tmp_path / "o.html"], tokens=["all"], batch_size=["2"])
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "ΔCE nats" in out
    assert "Splicing all 2 SAEs together" in out
    assert len(err.splitlines()) == 1
    assert "tokens/s" in err
    assert sorted(os.listdir(tmp_path)) == ["o.html", "o.json"]
    data = json.loads((tmp_path / "o.json").read_text())
    jsonschema.validate(data, schema())
    saes = {site: saekernels.load(files[site], dtype=torch.float32) for site in tiny_lm.SITES}
    want = evaluate(
        tiny_lm.model(), tiny_lm.tokenizer(), saes, load_documents([files["data"]]), bootstrap=50, batch_size=2
    ).to_dict()
    assert data["model"] == str(files["model"])
    for name in ("sites", "all_sites", "tokens", "documents", "bytes", "context", "notes"):
        assert data[name] == want[name], name


def test_the_independent_script_reproduces_the_loss(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    assert main(arguments(files, json=[path], tokens=["300"], seed=["3"])) == 0
    saes = {site: files[site] for site in tiny_lm.SITES}
    rows = independent_spliced_ce.compare(json.loads(path.read_text()), files["model"], files["data"], saes)
    for site, (reported, found) in rows.items():
        assert reported == pytest.approx(found, abs=5e-6), site


def damaged_sae(files: dict[str, Path], folder: Path) -> dict[str, Any]:
    copy = folder / "damaged"
    copy.mkdir()
    (copy / "cfg.json").write_bytes((files[tiny_lm.SITES[0]] / "cfg.json").read_bytes())
    (copy / "sae_weights.safetensors").write_bytes(b"\x00" * 20)
    return {"sae": [f"model.layers.0={copy}"]}


def narrow_sae(files: dict[str, Path], folder: Path) -> dict[str, Any]:
    copy = folder / "narrow"
    copy.mkdir()
    config = json.loads((files[tiny_lm.SITES[0]] / "cfg.json").read_text())
    (copy / "cfg.json").write_text(json.dumps({**config, "d_in": 16}))
    tensors = load_file(files[tiny_lm.SITES[0]] / "sae_weights.safetensors")
    cut = {"W_enc": tensors["W_enc"][:16], "W_dec": tensors["W_dec"][:, :16], "b_dec": tensors["b_dec"][:16]}
    save_file(
        {"b_enc": tensors["b_enc"], **{k: v.contiguous() for k, v in cut.items()}}, copy / "sae_weights.safetensors"
    )
    return {"sae": [f"model.layers.0={copy}"]}


def foreign_tokenizer(files: dict[str, Path], folder: Path) -> dict[str, Any]:
    small = folder / "small"
    tiny_lm.model(vocab_size=260).save_pretrained(small)
    tiny_lm.tokenizer().save_pretrained(small)
    return {"model": [small]}


def incomplete_model(files: dict[str, Path], folder: Path) -> dict[str, Any]:
    copy = folder / "incomplete"
    tiny_lm.model().save_pretrained(copy)
    tiny_lm.tokenizer().save_pretrained(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    return {"model": [copy]}


def no_tokenizer(files: dict[str, Path], folder: Path) -> dict[str, Any]:
    copy = folder / "bare"
    tiny_lm.model().save_pretrained(copy)
    return {"model": [copy]}


def empty_data(files: dict[str, Path], folder: Path) -> dict[str, Any]:
    (folder / "empty.jsonl").write_text("")
    return {"data": [folder / "empty.jsonl"]}


def fixed(**changes: Any) -> Any:
    return lambda files, folder: changes


BAD: dict[str, tuple[Any, str]] = {
    "unknown site": (lambda f, _: {"sae": [f"model.layer.1={f[tiny_lm.SITES[1]]}"]}, "close names: .*'model.layers.1'"),
    "site never run": (lambda f, _: {"sae": [f"lm_head@input={f[tiny_lm.SITES[1]]}"]}, "lm_head@input.*never runs"),
    "same site twice": (lambda f, _: {"sae": [f"model.layers.1={f[tiny_lm.SITES[1]]}"] * 2}, "given twice"),
    "same name twice": (
        lambda f, _: {"sae": [f"model.layers.1#a={f[site]}" for site in tiny_lm.SITES]},
        "model.layers.1#a=.*need a name behind # that no other SAE of the site has",
    ),
    "no name": (
        lambda f, _: {"sae": [f"model.layers.1#={f[tiny_lm.SITES[1]]}"]},
        "model.layers.1#=.*need a name behind #",
    ),
    "nothing replaced": (
        fixed(**{"leave-first": ["24"], "baselines": ["none"]}),
        "model.layers.0: of all positions of the text none is replaced; leave fewer alone, or read more",
    ),
    "sae without path": (fixed(sae=["model.layers.1"]), "need SITE=PATH"),
    "sae that is not there": (fixed(sae=["model.layers.1=missing"]), "model.layers.1=missing.*does not exist"),
    "damaged sae": (damaged_sae, "damaged.*sae_weights.safetensors"),
    "narrow sae": (narrow_sae, "model.layers.0.*width 16.*32"),
    "model that is not there": (fixed(model=["./missing"]), "--model: ./missing does not exist"),
    "model that is a file": (lambda f, _: {"model": [f["data"]]}, "is a file"),
    "model that is no model": (lambda f, folder: {"model": [folder]}, "--model: cannot load"),
    "model without all weights": (incomplete_model, "lacks 9 weights, such as 'model.layers.2"),
    "model without tokenizer": (no_tokenizer, "cannot load a tokenizer"),
    "tokenizer that does not fit": (foreign_tokenizer, "tokenizer does not fit the model: it gives token id"),
    "empty data": (empty_data, "no text in .*empty.jsonl"),
    "data that is not there": (fixed(data=["missing.jsonl"]), "missing.jsonl does not exist"),
    "model alone": (fixed(sae=None, data=None), "--model needs --sae SITE=PATH and --data"),
    "no tokens": (fixed(tokens=["0"]), "--tokens: need at least 1, got 0"),
    "tokens in words": (fixed(tokens=["many"]), "--tokens: need a whole number, got 'many'"),
    "context too long": (fixed(context=["25"]), "got 25 tokens, but the model has only 24 positions"),
    "unknown device": (fixed(device=["toaster"]), "--device: cannot use 'toaster'"),
    "unknown dtype": (fixed(dtype=["int8"]), "--dtype: invalid choice"),
    "unknown option": (fixed(shiny=["1"]), "unrecognized arguments: --shiny 1"),
    "json into nowhere": (lambda _, folder: {"json": [folder / "missing" / "o.json"]}, "missing does not exist"),
    "json over a directory": (lambda _, folder: {"json": [folder]}, "is a directory"),
    "both into one": (lambda _, folder: {"json": [folder / "o"], "html": [folder / "o"]}, "both are"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_one_thing_and_writes_nothing(
    name: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD[name]
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    inputs.mkdir()
    outputs.mkdir()
    changes = make(files, inputs)
    changes = {"json": [outputs / "o.json"], "html": [outputs / "o.html"], **changes}
    capsys.readouterr()
    line = fails(capsys, arguments(files, **changes))
    assert re.search(message, line), line
    assert os.listdir(outputs) == []


def test_ctrl_c_is_130_and_writes_nothing(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from saekernels.eval.passes.runner import Runner

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", interrupt)
    assert main(arguments(files, json=[tmp_path / "o.json"])) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "saekernels eval: interrupted, nothing was written\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("package", ["transformers", "rich", "matplotlib"])
def test_a_missing_extra_is_named(
    package: str,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    line = fails(capsys, arguments(files, html=[tmp_path / "o.html"]))
    assert package in line
    assert "pip install 'saekernels[eval]'" in line


def test_code_from_a_checkpoint_is_never_run(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "remote"
    folder.mkdir()
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    fails(capsys, arguments(files, model=[folder]))
    assert not (tmp_path / "ran").exists()


def test_version_by_module_entry() -> None:
    argv = [sys.executable, "-m", "saekernels", "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == f"saekernels {saekernels.__version__}\n"


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert {"eval", "info", "--version"} <= set(capsys.readouterr().out.split())


def test_eval_help_names_every_default_that_matters(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "default: 50000" in text
    assert "default: 2000" in text
    assert "None" not in text
