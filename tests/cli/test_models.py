"""Models as people have them: GGUF files, revisions on the hub, quantised checkpoints, models of images and text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny_lm
from checkpoints import dequantised, llama, write_gguf, write_hub_cache
from cli import arguments, fails
from saekernels.cli import main
from saekernels.cli.entry import build_parser
from saekernels.cli.options.models import ModelNames, load_model, load_tokenizer
from saekernels.eval import evaluate
from saekernels.eval.report.data import schema
from saekernels.eval.store.provenance import quantisation
from splice_helpers import own_losses, token_documents

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


HUB = """
from saekernels.cli import main
for number, revision in enumerate(({revisions})):
    code = main([*{argv!r}, *revision, "--json", f"{out}/{{number}}.json"])
    assert code == 0, code
"""


def test_a_revision_of_the_hub_is_what_is_evaluated(files: dict[str, Path], tmp_path: Path) -> None:
    """Two branches and a commit of a repository, from a cache of the hub and without a network."""
    wanted = {}
    for number, revision in enumerate(("main", "step1000")):
        model = tiny_lm.model(seed=number)
        model.save_pretrained(tmp_path / revision)
        tiny_lm.tokenizer().save_pretrained(tmp_path / revision)
        report = evaluate(
            model, tiny_lm.tokenizer(), {tiny_lm.SITES[0]: tiny_lm.sae()}, tiny_lm.documents(), bootstrap=0
        )
        wanted[revision] = report.all_sites.ce.clean
    write_hub_cache(tmp_path / "hub", "owner/name", {name: tmp_path / name for name in wanted})
    argv = arguments(
        files, model=["owner/name"], sae=[f"{tiny_lm.SITES[0]}={files[tiny_lm.SITES[0]]}"], bootstrap=["0"]
    )
    commit = "2" * 40
    code = HUB.format(
        revisions=f"[], ['--revision', 'step1000'], ['--revision', '{commit}']",
        argv=argv,
        out=tmp_path,
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(3)]
    clean = [one["all_sites"]["ce"]["clean"] for one in found]
    assert clean == pytest.approx([wanted["main"], wanted["step1000"], wanted["step1000"]], abs=1e-9)
    assert abs(clean[0] - clean[1]) > 0.01
    assert [one["run"].get("revision") for one in found] == [None, f"step1000 ({commit[:12]})", commit]
    assert "revision: step1000" in done.stdout


def test_a_revision_of_what_is_on_the_disk(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, arguments(files, revision=["step1000"])) == (
        f"saekernels eval: error: --revision: {files['model']} is on this machine's disk, "
        "need a repository of the hub\n"
    )


@pytest.mark.parametrize("command", ["eval", "breadth", "maps", "monitor"])
def test_commands_that_load_one_model_take_the_same_options(command: str) -> None:
    watch = ["--watch", "model.layers.0:1"] if command == "monitor" else []
    given = ["--model", "a.gguf", "--tokenizer", "t", "--revision", "r", "--adapter", "p", "--trust-remote-code"]
    parsed = build_parser().parse_args([command, *watch, *given])
    assert ModelNames.of(parsed) == ModelNames("a.gguf", "t", "r", "p", True)


def quantised(folder: Path, quantization: dict[str, Any], change: Callable[[dict[str, Any]], Any] = dict) -> Path:
    """The tiny model with a quantization_config; `change`: of its tensors."""
    from safetensors.torch import load_file, save_file

    tiny_lm.model().save_pretrained(folder)
    tiny_lm.tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


MISSING = {
    "bitsandbytes": {"load_in_4bit": True},
    "gptq": {"bits": 4, "group_size": 32},
    "awq": {"bits": 4, "group_size": 32},
    "compressed-tensors": {"format": "pack-quantized"},
    "torchao": {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}, "_version": 1}}},
    "hqq": {"quant_config": {}},
    "quanto": {"weights": "int8"},
    "aqlm": {},
}


@pytest.mark.parametrize("method", MISSING)
def test_a_quantised_checkpoint_whose_package_is_missing_is_one_line(
    method: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = quantised(tmp_path / "model", {"quant_method": method, **MISSING[method]})
    capsys.readouterr()
    line = fails(capsys, arguments(files, model=[folder]))
    package = {"gptq": "optimum", "awq": "gptqmodel"}.get(method, method)
    assert f"--model: cannot load {str(folder)!r}: " in line
    assert package in line.partition(repr(str(folder)))[2].lower(), line


def test_an_fp8_checkpoint_is_dequantised_where_nothing_multiplies_fp8_and_the_report_says_so(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights in e4m3 with a scale for each block of 16 by 16, as DeepSeek's."""
    want = tiny_lm.model()

    def in_fp8(tensors: dict[str, Any]) -> dict[str, Any]:
        made = {}
        for name, value in tensors.items():
            if "_proj" not in name:
                made[name] = value
                continue
            tall, wide = (size // 16 for size in value.shape)
            blocks = value.reshape(tall, 16, wide, 16)
            scale = blocks.abs().amax((1, 3)) / 448
            made[name] = (blocks / scale[:, None, :, None]).reshape(value.shape).to(torch.float8_e4m3fn)
            made[f"{name}_scale_inv"] = scale
            exact = made[name].float().reshape(blocks.shape) * scale[:, None, :, None]
            want.get_parameter(name).data.copy_(exact.reshape(value.shape))
        return made

    options = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16], "fmt": "e4m3"}
    folder = quantised(tmp_path / "model", options, in_fp8)
    found = loaded(folder)
    ids = torch.arange(3, 27)[None]
    torch.testing.assert_close(found.model(ids).logits, want(ids).logits, rtol=0, atol=1e-5)
    assert (want(ids).logits - tiny_lm.model()(ids).logits).abs().max() > 1e-2
    assert found.facts == {"weights": "fp8 e4m3, dequantised to float32"}
    capsys.readouterr()
    assert main([*arguments(files, model=[folder])]) == 0
    assert "weights: fp8 e4m3, dequantised to float32" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "bitsandbytes 4-bit nf4",
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes 8-bit"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq 4-bit"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors pack-quantized"),
        ({"quant_method": "torchao", **MISSING["torchao"]}, "torchao Int8WeightOnlyConfig"),
        ({"quant_method": "quanto", "weights": "int8"}, "quanto int8"),
    ],
)
def test_what_is_said_of_a_quantisation(config: dict[str, Any], told: str) -> None:
    assert quantisation(config) == told


def test_evaluate_says_what_the_models_config_says_of_its_weights() -> None:
    model = tiny_lm.model()
    model.config.quantization_config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    report = evaluate(model, tiny_lm.tokenizer(), tiny_lm.saes(), tiny_lm.documents(), bootstrap=0)
    assert report.run["weights"] == "bitsandbytes 8-bit"
    assert "weights: bitsandbytes 8-bit" in " ".join(str(report).split())
    assert schema()["properties"]["run"]["type"] == "object"


def test_weights_of_another_shape_than_the_config_says(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = quantised(tmp_path / "model", {}, lambda tensors: {**tensors, "lm_head.weight": torch.zeros(7, 32)})
    config = json.loads((model / "config.json").read_text())
    del config["quantization_config"]
    (model / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert fails(capsys, arguments(files, model=[model])) == (
        f"saekernels eval: error: --model: the checkpoint {str(model)!r} has 1 weight of another shape "
        "than its config says, such as 'lm_head.weight': got [7, 32], need [320, 32]\n"
    )


TEXT = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}
IMAGE = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
IMAGE |= {"hidden_size": 16, "intermediate_size": 32}


def wider_model(kind: str) -> Any:
    """A tiny model of images (or sounds) and text, random."""
    hf, torch_seed = transformers, 0
    torch.manual_seed(torch_seed)
    if kind == "Gemma3":
        config = hf.Gemma3Config(
            text_config={**TEXT, "sliding_window": 16},
            vision_config=IMAGE,
            mm_tokens_per_image=4,
            image_token_index=319,
        )
        return hf.Gemma3ForConditionalGeneration(config)
    if kind == "Llava":
        vision = {"model_type": "clip_vision_model", **IMAGE}
        config = hf.LlavaConfig(
            text_config={"model_type": "llama", **TEXT}, vision_config=vision, image_token_index=319
        )
        return hf.LlavaForConditionalGeneration(config)
    if kind == "Llama4":
        image = {**IMAGE, "intermediate_size": 64, "vision_output_dim": 16, "pixel_shuffle_ratio": 0.5}
        image |= {"projector_input_dim": 16, "projector_output_dim": 16}
        text = {**TEXT, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 16}
        return hf.Llama4ForConditionalGeneration(hf.Llama4Config(text_config=text, vision_config=image))
    sound = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    config = hf.Qwen2AudioConfig(text_config={"model_type": "qwen2", **TEXT}, audio_config=sound)
    return hf.Qwen2AudioForConditionalGeneration(config)


WIDER = {
    "Gemma3": "model.language_model.layers.0",
    "Llava": "model.language_model.layers.0",
    "Llama4": "language_model.model.layers.0",
    "Qwen2Audio": "model.language_model.layers.0",
}


@pytest.mark.parametrize("kind", WIDER)
def test_a_model_of_images_or_sounds_and_text_reads_text(kind: str, tmp_path: Path) -> None:
    """Against its own full logits; Llama 4's class for text alone has no place for the vision tower's weights."""
    saved = wider_model(kind).eval()
    saved.save_pretrained(tmp_path)
    model = loaded(tmp_path).model
    assert type(model) is type(saved)
    documents, sae, site = token_documents(316), tiny_lm.sae(), WIDER[kind]
    report = evaluate(model, None, {site: sae}, documents, context=24, bootstrap=0)
    run = lambda ids: saved(input_ids=ids, use_cache=False).logits  # noqa: E731
    clean, spliced = own_losses(run, saved.get_submodule(site), sae, documents, 24)
    assert report.sites[0].ce.clean == pytest.approx(clean, abs=2e-6)
    assert report.sites[0].ce.spliced == pytest.approx(spliced, abs=2e-6)
    assert abs(clean - spliced) > 1e-3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            transformers.ViTConfig(architectures=["ViTForImageClassification"]),
            "ViTForImageClassification is no causal language model that transformers knows",
        ),
        (
            transformers.T5Config(architectures=["T5ForConditionalGeneration"]),
            "T5ForConditionalGeneration is an encoder-decoder; from Python, evaluate takes encoder_ids",
        ),
    ],
    ids=["images", "encoder-decoder"],
)
def test_models_of_other_kinds_are_refused_by_name(
    config: Any, said: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.save_pretrained(tmp_path)
    assert fails(capsys, arguments(files, model=[tmp_path])) == (
        f"saekernels eval: error: --model: cannot load {str(tmp_path)!r}: {said}\n"
    )
