"""`saekernels info PATH`: each fact of a file of every format, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import saekernels as sk
import zoo
from cli import fails
from saekernels.cli import main
from saekernels.formats.describe import describe
from zoo import OUT, D, F, K, random

UNSAID = "the files do not say"
# What a file says of nothing: the facts of most formats.
PLAIN = {
    "class": "SAE", "sizes": f"d_in {D}, d_out {D}, {F} latents", "biases": "b_enc, b_dec",
    "pre-bias": "nothing is subtracted from the input", "normalisation": "none", "decoder norms": "not used",
    "skip connection": "none", "dtype": "float32", "model": UNSAID, "site": UNSAID, "reads": UNSAID, "writes": UNSAID,
    "head": UNSAID, "prepend BOS": UNSAID, "context": UNSAID, "dataset": UNSAID, "model options": UNSAID,
    "kept": UNSAID, "ignored fields": "none",
}  # fmt: skip


def saelens(folder: Path) -> tuple[Path, dict[str, str]]:
    sae = zoo.randomised(sk.SAE(D, F, sk.JumpReLU(), normalization=sk.LayerNorm(), dtype=torch.bfloat16))
    with torch.no_grad():
        assert sae.threshold is not None
        sae.threshold.copy_(torch.linspace(0.25, 2.0, F))
    about = {
        "model_name": "gpt2-small", "hook_name": "blocks.2.attn.hook_z", "hook_head_index": 3, "prepend_bos": False,
        "context_size": 1024, "dataset_path": "owner/text", "model_from_pretrained_kwargs": {"fold_ln": True},
    }  # fmt: skip
    sk.save(sae, folder, metadata=about)
    zoo.change_config(folder, twist=0.5)
    return folder, {
        "format": "SAELens", "activation": "JumpReLU(), thresholds 0.25 to 2",
        "pre-bias": "b_dec is subtracted from the input", "normalisation": "LayerNorm(eps=1e-05)", "dtype": "bfloat16",
        "memory": "2.1 KiB", "model": "gpt2-small", "site": "blocks.2.attn.hook_z[head=3]",
        "reads": "blocks.2.attn.hook_z", "writes": "blocks.2.attn.hook_z", "head": "3", "prepend BOS": "no",
        "context": "1,024 tokens", "dataset": "owner/text", "model options": "fold_ln=True",
        "kept": "sae_lens_version='6.0.0', reshape_activations='none'",
        "ignored fields": "'twist': not known here, not used",
        "note": f"{folder / 'cfg.json'}: fields that are not known here were not used: 'twist' (0.5)",
    }  # fmt: skip


def sparsify(folder: Path) -> tuple[Path, dict[str, str]]:
    place = zoo.sparsify_folder(
        folder.parent / "layers.3.mlp", D, F, num_latents=F, transcode=True, skip_connection=True
    )
    return place, {
        "format": "sparsify", "class": "transcoder", "activation": "TopK(k=4)", "skip connection": f"W_skip [{D}, {D}]",
        "site": "layers.3.mlp@input -> layers.3.mlp", "reads": "layers.3.mlp@input", "writes": "layers.3.mlp",
    }  # fmt: skip


def dictionary_learning(folder: Path) -> tuple[Path, dict[str, str]]:
    trainer = {"dict_class": "BatchTopKSAE", "k": K, "lm_name": "owner/model", "submodule_name": "resid_post_layer_3"}
    tensors = {**zoo.LINEAR, "b_dec": random(D), "k": torch.tensor(K), "threshold": torch.tensor(0.5)}
    return zoo.dictionary(folder, tensors, {**trainer, "layer": 3, "wobble": 1}), {
        "format": "dictionary_learning", "activation": "BatchTopK(k=5.0), threshold 0.5",
        "pre-bias": "b_dec is subtracted from the input", "model": "owner/model", "site": "resid_post_layer_3",
        "reads": "resid_post_layer_3", "writes": "resid_post_layer_3", "kept": "layer=3",
        "context": "128 tokens", "ignored fields": "'wobble': not known here, not used",
        "note": f"{folder / 'config.json'}: fields that are not known here were not used: 'wobble' (1)",
    }  # fmt: skip


def gemma_scope(folder: Path) -> tuple[Path, dict[str, str]]:
    place = folder / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    zoo.gemma(place, threshold=torch.full((F,), 0.125))
    here = "blocks.20.hook_resid_post"
    return place, {
        "format": "Gemma Scope", "activation": "JumpReLU(), threshold 0.125", "model": "google/gemma-2-2b",
        "site": here, "reads": here, "writes": here,
    }  # fmt: skip


def gemma_scope_2(folder: Path) -> tuple[Path, dict[str, str]]:
    skip = {"affine_skip_connection": random(D, OUT), "threshold": torch.zeros(F)}
    zoo.gemma(folder, OUT, "safetensors", **skip)
    return folder / "params.safetensors", {
        "format": "Gemma Scope", "class": "transcoder", "sizes": f"d_in {D}, d_out {OUT}, {F} latents",
        "activation": "JumpReLU(), threshold 0", "skip connection": f"W_skip [{OUT}, {D}]",
    }  # fmt: skip


def llama_scope(folder: Path) -> tuple[Path, dict[str, str]]:
    norms = {"in": 4.0, "out": 2.0}
    zoo.llama(folder, {"d_sae": F, "jump_relu_threshold": 0.5, "dataset_average_activation_norm": norms,
                       "hook_point_out": "g", "sparsity_include_decoder_norm": True})  # fmt: skip
    return folder, {
        "format": "Llama Scope", "class": "transcoder", "activation": "JumpReLU(), threshold 0.433",
        "normalisation": "Scale(factor=0.8660254037844386)", "site": "h -> g", "reads": "h", "writes": "g",
        "decoder norms": "pre-activations are multiplied by them, and codes divided",
        "kept": "dataset_average_activation_norm={'in': 4.0, 'out': 2.0}",
    }  # fmt: skip


def openai(folder: Path) -> tuple[Path, dict[str, str]]:
    zoo.openai(folder / "7.pt", activation_state_dict={"k": K, "postact_fn": "Identity"})
    return folder / "7.pt", {
        "format": "OpenAI sparse_autoencoder", "activation": f"TopK(k={K}, relu=False)",
        "normalisation": "LayerNorm(eps=1e-05)", "pre-bias": "b_dec is subtracted from the input",
        "model options": "center_writing_weights=False",
    }  # fmt: skip


def goodfire(folder: Path) -> tuple[Path, dict[str, str]]:
    names = {"encoder_linear.weight": random(F, D), "encoder_linear.bias": random(F),
             "decoder_linear.weight": random(D, F), "decoder_linear.bias": random(D)}  # fmt: skip
    torch.save(names, folder / "l19.pth")
    return folder / "l19.pth", {"format": "Goodfire", "activation": "ReLU()"}


def qwen_scope(folder: Path) -> tuple[Path, dict[str, str]]:
    place = folder / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    place.mkdir()
    tensors = {"W_enc": random(F, D), "W_dec": random(D, F), "b_enc": random(F), "b_dec": random(D)}
    torch.save(tensors, place / "layer3.sae.pt")
    here = "model.layers.3"
    return place / "layer3.sae.pt", {
        "format": "Qwen Scope", "activation": f"TopK(k={K}, relu=False)", "site": here, "reads": here, "writes": here,
    }  # fmt: skip


def circuit_tracer(folder: Path) -> tuple[Path, dict[str, str]]:
    tensors = {"W_enc": random(F, D), "W_dec": random(F, D), "b_enc": random(F), "b_dec": random(D)}
    save_file(tensors, folder / "layer_3.safetensors")
    (folder / "config.yaml").write_text(
        f"model_name: owner/model\nactivation: topk\nk: {K}\nfeature_input_hook: a\nfeature_output_hook: b\n"
    )
    return folder / "layer_3.safetensors", {
        "format": "circuit-tracer", "class": "transcoder", "activation": f"TopK(k={K}, relu=False)",
        "model": "owner/model", "site": "blocks.3.a -> blocks.3.b", "reads": "blocks.3.a", "writes": "blocks.3.b",
    }  # fmt: skip


MAKERS: list[Callable[[Path], tuple[Path, dict[str, str]]]] = [
    saelens, sparsify, dictionary_learning, gemma_scope, gemma_scope_2, llama_scope, openai, goodfire, qwen_scope,
    circuit_tracer,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_every_fact_of_every_format(
    make: Callable[[Path], tuple[Path, dict[str, str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    path, facts = make(tmp_path / "here")
    assert main(["info", str(path)]) == 0
    found: dict[str, str] = {}
    files = []
    for line in capsys.readouterr().out.splitlines():
        name, text = line[:17].rstrip(), line[17:]
        files += [text] if name == "file" else []
        found |= {name: text} if name != "file" else {}
    disk = found.pop("disk")
    memory = found.pop("memory")
    wanted = {**PLAIN, **facts}
    assert memory == wanted.pop("memory", memory)
    assert found == wanted
    sae = sk.load(path) if "note" not in facts else quietly(path)
    total = sum(value.numel() * value.element_size() for value in sae.state_dict().values())
    facts_ = describe(path)
    assert facts_["memory_bytes"] == total
    assert facts_["disk_bytes"] == sum(file["bytes"] for file in facts_["files"]) > 0
    assert files == [f"{file['path']} ({shown_size(file['bytes'])})" for file in facts_["files"]]
    there = (path if path.is_dir() else path.parent).rglob("*")
    assert {Path(file["path"]) for file in facts_["files"]} == {one for one in there if one.is_file()}
    assert disk == shown_size(facts_["disk_bytes"])
    assert main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts_


def shown_size(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size >= 1024 else f"{size} bytes"


def quietly(path: Path) -> sk.SAE:
    with pytest.warns(UserWarning, match="not known here"):
        return sk.load(path)


def test_what_the_files_do_not_say_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"W_enc": random(F, D), "W_dec": random(D, F), "b_enc": random(F), "b_dec": random(D)}
    torch.save(tensors, tmp_path / "layer3.sae.pt")
    path = str(tmp_path / "layer3.sae.pt")
    assert "k is in no file; give --k, or keep" in fails(capsys, ["info", path])
    assert main(["info", path, "--k", "7"]) == 0
    assert "activation       TopK(k=7, relu=False)\n" in capsys.readouterr().out


BAD: list[tuple[list[str], str]] = [
    (["./nowhere"], "path: got './nowhere', which does not exist"),
    (["empty"], "path: got 'empty' with [], need a checkpoint folder or file of one"),
    (["notes.txt"], "path: got 'notes.txt', need a checkpoint folder or file of one"),
    (["broken.safetensors"], "broken.safetensors: damaged or not a safetensors file"),
    (["cut.pt"], "cut.pt: damaged or not a torch file"),
    (["params.npz"], "params.npz: damaged or not a numpy archive"),
    (["zip.npz/params.npz"], "zip.npz/params.npz: damaged or not a numpy archive"),
    (["empty", "--stats"], "--stats: it is about this installation, not about a checkpoint"),
    (["--k", "3"], "--k: it is about a checkpoint; give its PATH as well"),
    ([""], "need a path or a name, got ''"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(given) or "nothing" for given, _ in BAD])
def test_bad_paths_end_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").write_text("nothing")
    Path("broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    torch.save({**zoo.LINEAR, "bias": torch.zeros(D)}, "cut.pt")
    Path("cut.pt").write_bytes(Path("cut.pt").read_bytes()[:-400])
    Path("params.npz").write_bytes(b"PK")
    zoo.gemma(Path("zip.npz"), W_enc=torch.zeros(D, 40_000))
    whole = Path("zip.npz/params.npz").read_bytes()
    Path("zip.npz/params.npz").write_bytes(whole[:1_000] + whole[-1_000:])
    assert message in fails(capsys, ["info", *arguments])
