"""GGUF files as models: the logits of their weights, what the report says of them, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny_lm
from checkpoints import dequantised, llama, write_gguf
from cli import arguments, fails
from saekernels.cli import main
from saekernels.cli.options.gguf_model import gguf_type
from saekernels.cli.options.models import ModelNames, load_model, load_tokenizer

CPU = torch.device("cpu")
gguf = pytest.mark.skipif(not transformers.utils.is_gguf_available(), reason="the package gguf is not installed")


def loaded(name: Path, **options: Any) -> Any:
    return load_model(ModelNames(str(name), **options), CPU, "float32")


@gguf
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("F32", "F32 GGUF, read as float32"),
        ("F16", "F16 GGUF, read as float32"),
        ("Q8_0", "Q8_0 GGUF, dequantised to float32"),
        ("Q4_1", "Q4_1 GGUF, dequantised to float32"),
    ],
)
def test_a_gguf_file_gives_the_logits_of_its_weights_in_a_folder(kind: str, told: str, tmp_path: Path) -> None:
    model = llama()
    found = loaded(write_gguf(tmp_path / "tiny.gguf", model, kind))
    (model if kind == "F32" else dequantised(model, kind)).save_pretrained(tmp_path / "folder")
    ids = torch.arange(3, 27)[None]
    want = loaded(tmp_path / "folder").model(ids).logits
    assert torch.equal(found.model(ids).logits, want)
    assert kind == "F32" or (want - model(ids).logits).abs().max() > 1e-3
    assert found.facts == {"weights": told}


@gguf
def test_a_report_of_a_gguf_file_is_that_of_its_weights_and_says_so(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = llama()
    path = write_gguf(tmp_path / "tiny.gguf", model, "Q4_1")
    tokenizer, ours = load_tokenizer(ModelNames(str(path))), tiny_lm.tokenizer()
    assert all(tokenizer(one.text)["input_ids"] == ours(one.text)["input_ids"] for one in tiny_lm.documents())
    folder = tmp_path / "folder"
    dequantised(model, "Q4_1").save_pretrained(folder)
    ours.save_pretrained(folder)
    capsys.readouterr()
    reports, shown = [], []
    for number, name in enumerate((path, folder)):
        out = tmp_path / f"{number}.json"
        page = ["--html", str(tmp_path / f"{number}.html")]
        assert main([*arguments(files, model=[name]), "--json", str(out), *page]) == 0
        reports.append(json.loads(out.read_text()))
        shown.append(capsys.readouterr().out)
    assert reports[0]["all_sites"] == reports[1]["all_sites"]
    assert reports[0]["sites"] == reports[1]["sites"]
    assert reports[0]["run"]["weights"] == "Q4_1 GGUF, dequantised to float32"
    assert "weights: Q4_1 GGUF, dequantised to float32" in " ".join(shown[0].split())
    assert (tmp_path / "0.html").read_text().count("Q4_1 GGUF, dequantised to float32") >= 3  # facts, method, data
    assert "weights" not in reports[1]["run"]
    assert "weights:" not in shown[1]


@gguf
def test_another_tokenizer_beside_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", llama())
    tiny_lm.tokenizer(bos=False).save_pretrained(tmp_path / "other")
    other = load_tokenizer(ModelNames(str(path), tokenizer=str(tmp_path / "other")))
    assert other("light")["input_ids"] == tiny_lm.tokenizer(bos=False)("light")["input_ids"]
    assert load_tokenizer(ModelNames(str(path)))("light")["input_ids"][0] == 0


@gguf
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: b"GGML" + data[4:], "it is no GGUF file"),
        (lambda data: data[:4] + b"\1\0\0\0" + data[8:], "it is GGUF of version 1; versions 2 and 3 are read"),
        (lambda data: data[:300], "its header is damaged at byte"),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "its header is damaged at byte 32"),
        (lambda data: data[:-4000], "cannot load"),
    ],
    ids=["magic", "version", "cut in its header", "length", "cut in its tensors"],
)
def test_damaged_gguf_files(
    change: Callable[[bytes], bytes], said: str, files: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", llama())
    path.write_bytes(change(path.read_bytes()))
    capsys.readouterr()
    line = fails(capsys, arguments(files, model=[path]))
    assert said in line, line
    assert "tiny.gguf" in line, line


@gguf
def test_a_gguf_file_with_stretched_rotary_embeddings_is_refused(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of Llama 3.1 and later: transformers reads them as if they were not stretched."""
    path = write_gguf(tmp_path / "tiny.gguf", llama(), further={"rope_freqs.weight": [1.0, 1.0, 1.0, 8.0]})
    capsys.readouterr()
    assert fails(capsys, arguments(files, model=[path])) == (
        f"saekernels eval: error: --model: {path} stretches its rotary embeddings ('rope_freqs.weight'), "
        "which transformers' GGUF loader leaves out: it would be another model; need the checkpoint that it was "
        "made from\n"
    )


def test_gguf_without_its_package(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert fails(capsys, arguments(files, model=[tmp_path / "tiny.gguf"])) == (
        "saekernels eval: error: reading a GGUF file needs the package 'gguf'; install it with: "
        "pip install 'saekernels[models]'\n"
    )
    assert "none.gguf does not exist" in fails(capsys, arguments(files, model=["none.gguf"]))


@gguf
def test_the_header_names_the_quantisation_if_the_tensors_bear_it_out(tmp_path: Path) -> None:
    """And not the type of most weights, which in Q4_K_M and its like is not the name that people know."""
    told = "Q4_1 GGUF, dequantised to float32"
    path = write_gguf(tmp_path / "lies.gguf", llama(), "Q4_1", said="Q8_0")
    assert gguf_type(str(path), torch.float32) == told
    path = write_gguf(tmp_path / "mixed.gguf", llama(), "Q4_1", further={"more.weight": [0.0] * 100_000})
    assert gguf_type(str(path), torch.float32) == told
