"""Files of every format, read by us and by the tools that made or convert them: outputs agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import saekernels as sk
import zoo
from zoo import D, F, K, random

pytestmark = pytest.mark.peers


def close(path: Path | str, theirs: Any, d_in: int = D, **options: Any) -> None:
    ours, x = sk.load(path, **options), random(9, d_in, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(ours.encode(x).to_dense(), theirs.encode(x), rtol=2e-5, atol=2e-5)


@pytest.fixture
def lens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """SAELens' own conversion of files under tmp_path, as if they came from the hub."""
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def download(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        found = tmp_path / repo_id.replace("/", "_") / (subfolder or "") / filename
        if not found.is_file():
            raise loaders.EntryNotFoundError(filename, response=None)  # type: ignore[attr-defined]
        return str(found)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        from safetensors import safe_open

        with safe_open(download(repo_id, filename), framework="pt") as file:
            return {key: list(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)

    def load(loader: str, repo: str, folder: str, scale: float | None = None, **overrides: Any) -> Any:
        cfg, state, _ = getattr(loaders, loader)(repo, folder, "cpu", False, overrides or None)
        cfg = loaders.handle_config_defaulting(cfg)
        kind = sae_lens.SAE.get_sae_class_for_architecture(cfg["architecture"])
        config = sae_lens.SAE.get_sae_config_class_for_architecture(cfg["architecture"]).from_dict(cfg)
        sae = kind(config)
        sae.load_state_dict({name: value.float() for name, value in state.items()})
        if scale is not None:
            sae.fold_activation_norm_scaling_factor(scale)
        return sae

    return load


def test_gemma_scope(lens: Any, tmp_path: Path) -> None:
    repo, folder = "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"
    place = tmp_path / repo.replace("/", "_") / folder
    zoo.gemma(place)
    close(place, lens("gemma_2_sae_huggingface_loader", repo, folder, d_in=D, d_sae=F))


def test_gemma_scope_transcoder(lens: Any, tmp_path: Path) -> None:
    repo, folder = "google/gemma-scope-2b-pt-transcoders", "layer_3/width_16k/average_l0_71"
    place = tmp_path / repo.replace("/", "_") / folder
    zoo.gemma(place)
    theirs = lens("gemma_2_transcoder_huggingface_loader", repo, folder, d_in=D, d_out=D, d_sae=F)
    close(place, theirs)


def test_gemma_scope_2(lens: Any, tmp_path: Path) -> None:
    repo, folder = "google/gemma-scope-2-270m-pt", "transcoder/layer_5_width_16k_l0_medium_affine"
    place = tmp_path / repo.replace("/", "_") / folder
    zoo.gemma(place, zoo.OUT, "safetensors", affine_skip_connection=random(D, zoo.OUT, seed=3))
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt", "affine_connection": True}
    (place / "config.json").write_text(json.dumps(config))
    close(place, lens("gemma_3_sae_huggingface_loader", repo, folder))


def test_llama_scope(lens: Any, tmp_path: Path) -> None:
    repo, folder = "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L0R-8x"
    norm = {"in": 17.0, "out": 17.0}
    config = {"d_sae": F, "jump_relu_threshold": 0.4, "dataset_average_activation_norm": norm}
    place = tmp_path / repo.replace("/", "_") / folder
    zoo.llama(place, config)
    theirs = lens("llama_scope_sae_huggingface_loader", repo, folder, scale=D**0.5 / 17.0, dtype="float32")
    close(place, theirs)


def test_llama_scope_r1(lens: Any, tmp_path: Path) -> None:
    repo, folder = "fnlp/Llama-Scope-R1-Distill", "400M-Slimpajama-400M-OpenR1-Math-220k/L3R"
    place = tmp_path / repo.replace("/", "_") / folder
    config = {"expansion_factor": F / D, "norm_activation": "dataset-wise"}
    zoo.llama(place, config, log_jumprelu_threshold=random(F, seed=2))
    scale = 0.7
    theirs = lens("llama_scope_r1_distill_sae_huggingface_loader", repo, folder, scale=scale, d_sae=F)
    close(place, theirs, input_scale=scale)


def test_goodfire(lens: Any, tmp_path: Path) -> None:
    repo, name = "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth"
    place = tmp_path / repo.replace("/", "_")
    place.mkdir()
    torch.save(
        {"encoder_linear.weight": random(F, D), "encoder_linear.bias": random(F),
         "decoder_linear.weight": random(D, F), "decoder_linear.bias": random(D)}, place / name,
    )  # fmt: skip
    close(place / name, lens("get_goodfire_huggingface_loader", repo, name, d_in=D, d_sae=F))


def test_qwen_scope(lens: Any, tmp_path: Path) -> None:
    repo = f"Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    place = tmp_path / repo.replace("/", "_")
    place.mkdir()
    tensors = {"W_enc": random(F, D), "W_dec": random(D, F), "b_enc": random(F) * 0.1, "b_dec": random(D)}
    torch.save(tensors, place / "layer3.sae.pt")
    close(place / "layer3.sae.pt", lens("qwen_scope_sae_huggingface_loader", repo, "layer3.sae.pt", d_in=D, d_sae=F))


def test_circuit_tracer(lens: Any, tmp_path: Path) -> None:
    repo = "mwhanna/qwen3-1.7b-transcoders"
    place = tmp_path / repo.replace("/", "_")
    place.mkdir()
    tensors = {"W_enc": random(F, D), "W_dec": random(F, D), "b_enc": random(F) * 0.1, "b_dec": random(D)}
    save_file(tensors, place / "layer_3.safetensors")
    sizes = {"d_model": {"value": D}, "d_feature": {"value": F}, "batch_size": {"value": 128}}
    (place / "wandb-config.yaml").write_text(json.dumps(sizes))
    (place / "config.yaml").write_text("model_name: Qwen/Qwen3-1.7B")
    theirs = lens("mwhanna_transcoder_huggingface_loader", repo, "layer_3.safetensors")
    close(place / "layer_3.safetensors", theirs)


NATIVE = {
    "AutoEncoder": ("dictionary.AutoEncoder", ()),
    "AutoEncoderNew": ("dictionary.AutoEncoderNew", ()),
    "GatedAutoEncoder": ("dictionary.GatedAutoEncoder", ()),
    "JumpReluAutoEncoder": ("dictionary.JumpReluAutoEncoder", ()),
    "AutoEncoderTopK": ("trainers.top_k.AutoEncoderTopK", (K,)),
    "BatchTopKSAE": ("trainers.batch_top_k.BatchTopKSAE", (K,)),
    "MatryoshkaBatchTopKSAE": ("trainers.matryoshka_batch_top_k.MatryoshkaBatchTopKSAE", (K, [16, 24])),
}


@pytest.mark.parametrize("name", NATIVE)
def test_dictionary_learning_by_its_own_classes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("dictionary_learning")
    import importlib

    path, arguments = NATIVE[name]
    module, _, kind = path.rpartition(".")
    theirs = getattr(importlib.import_module(f"dictionary_learning.{module}"), kind)(D, F, *arguments)
    torch.manual_seed(0)
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(torch.randn_like(value) * (0.3 if value.dim() == 1 else 1.0))
        if name == "JumpReluAutoEncoder":
            theirs.threshold.abs_()
        if hasattr(theirs, "k"):
            theirs.threshold.fill_(0.7)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": name, **({"k": K} if hasattr(theirs, "k") else {})}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    close(tmp_path, theirs)


def test_dictionary_learning_by_saelens(lens: Any, tmp_path: Path) -> None:
    repo, folder = "canrager/lm_sae", "layer_8/trainer_0"
    b = random(D, seed=9)
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": F, "k": K, "layer": 8, "lm_name": "a/b"}
    tensors = {**zoo.LINEAR, "b_dec": b, "k": torch.tensor(K), "threshold": torch.tensor(0.7)}
    place = zoo.dictionary(tmp_path / repo.replace("/", "_") / folder, tensors, trainer)
    close(place, lens("dictionary_learning_sae_huggingface_loader_1", repo, folder))
