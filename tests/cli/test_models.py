"""Models as people have them: revisions on the hub, models of images and text, kinds that are refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny_lm
from checkpoints import write_hub_cache
from cli import arguments, fails
from saekernels.cli.entry import build_parser
from saekernels.cli.options.models import ModelNames, load_model
from saekernels.eval import evaluate
from splice_helpers import own_losses, token_documents

CPU = torch.device("cpu")


def loaded(name: Path, **options: Any) -> Any:
    return load_model(ModelNames(str(name), **options), CPU, "float32")


HUB = """
from saekernels.cli import main
for number, revision in enumerate(({revisions})):
    code = main([*{argv!r}, *revision, "--json", f"{out}/{{number}}.json"])
    assert code == 0, code
"""


@pytest.mark.slow
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
    # Another process rounds its float32 products otherwise, by how its weights lie in memory.
    assert clean == pytest.approx([wanted["main"], wanted["step1000"], wanted["step1000"]], abs=1e-6)
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


def test_weights_of_another_shape_than_the_config_says(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    tiny_lm.model().save_pretrained(model)
    tensors = {**load_file(model / "model.safetensors"), "lm_head.weight": torch.zeros(7, 32)}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
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
