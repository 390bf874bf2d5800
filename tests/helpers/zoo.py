"""Checkpoints of every format, made here with numbers that are all used, and the formulas that read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk

D, F, OUT, K = 12, 40, 7, 5
Read = Callable[[Tensor], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator)


def topk(z: Tensor, k: int = K) -> Tensor:
    top = z.relu().topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, top.indices, top.values)


def jump(z: Tensor, threshold: Tensor | float) -> Tensor:
    return z.relu() * (z > threshold)


X = random(9, D, seed=5) * 1.5


def same(sae: sk.SAE, right: Tensor) -> None:
    torch.testing.assert_close(sae(X).detach(), right, rtol=2e-5, atol=2e-5)


def check(path: Path | str, formula: Read, d_in: int = D, **options: Any) -> sk.SAE:
    sae = sk.load(path, **options)
    x = random(9, d_in, seed=5) * 1.5
    torch.testing.assert_close(sae(x).detach(), formula(x), rtol=2e-5, atol=2e-5)
    assert not sae.training
    return sae


def gemma(folder: Path, d_out: int = D, suffix: str = "npz", **extra: Tensor) -> dict[str, Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    w = {"W_enc": random(D, F), "W_dec": random(F, d_out), "b_enc": random(F) * 0.2, "b_dec": random(d_out)}
    w = {**w, "threshold": random(F).abs(), **extra}
    if suffix == "npz":
        np.savez(folder / "params.npz", **{name: value.numpy() for name, value in w.items()})
    else:
        lower = {{"W_enc": "w_enc", "W_dec": "w_dec"}.get(name, name): value for name, value in w.items()}
        save_file({name: value.contiguous() for name, value in lower.items()}, folder / "params.safetensors")
    return w


def llama(folder: Path, config: dict[str, Any], names: str = "v1", **extra: Tensor) -> dict[str, Tensor]:
    w = {"W_enc": random(F, D) / 3, "W_dec": random(F, D), "b_enc": random(F) * 0.2, "b_dec": random(D)}
    if names == "v1":
        tensors = {"encoder.weight": w["W_enc"], "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T,
                   "decoder.bias": w["b_dec"]}  # fmt: skip
    else:
        tensors = {"W_E": w["W_enc"].T, "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"]}
    where = folder / ("checkpoints/final.safetensors" if "d_sae" in config else "sae_weights.safetensors")
    where.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in {**tensors, **extra}.items()}, where)
    name = "hyperparams.json" if "d_sae" in config else "config.json"
    (folder / name).write_text(json.dumps({"d_model": D, "hook_point_in": "h", "hook_point_out": "h", **config}))
    return w


def openai(path: Path, **changes: Any) -> dict[str, Any]:
    found = {
        "pre_bias": random(D), "latent_bias": random(F) * 0.2, "encoder.weight": random(F, D),
        "decoder.weight": random(D, F), "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
        "activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"},
    }  # fmt: skip
    found.update(changes)
    torch.save(found, path)
    return found


def dictionary(folder: Path, tensors: dict[str, Tensor], trainer: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    if trainer is not None:
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return folder


LINEAR = {"encoder.weight": random(F, D), "encoder.bias": random(F) * 0.2, "decoder.weight": random(D, F)}


def pre(x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    return (x - shift) @ LINEAR["encoder.weight"].T + LINEAR["encoder.bias"]


def out(z: Tensor, bias: Tensor) -> Tensor:
    return z @ LINEAR["decoder.weight"].T + bias


def selected(folder: Path, kind: str | None, threshold: float, **extra: Tensor) -> tuple[Path, Tensor]:
    b = random(D, seed=9)
    tensors = {**LINEAR, "b_dec": b, "k": torch.tensor(K), "threshold": torch.tensor(threshold), **extra}
    return dictionary(folder, tensors, None if kind is None else {"dict_class": kind, "k": K}), b


def saelens_folder(folder: Path, **config: Any) -> Path:
    sk.save(randomised(sk.SAE(8, 24, sk.TopK(4))), folder)
    change_config(folder, **config)
    return folder


def sparsify_folder(folder: Path, d: int = 8, F: int = 24, **config: Any) -> Path:
    folder.mkdir()
    full = {"activation": "topk", "expansion_factor": 3, "num_latents": 0, "k": 4, "d_in": d, "normalize_decoder": True}
    (folder / "cfg.json").write_text(json.dumps(full | config))
    tensors = {
        "encoder.weight": torch.randn(F, d),
        "encoder.bias": torch.randn(F),
        "W_dec": torch.randn(F, d),
        "b_dec": torch.randn(d),
    }
    if config.get("skip_connection"):
        tensors["W_skip"] = torch.randn(d, d)
    save_file(tensors, folder / "sae.safetensors")
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    config.update(changes)
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def randomised(sae: sk.SAE) -> sk.SAE:
    with torch.no_grad():
        for name, value in [*sae.named_parameters(), *sae.named_buffers()]:
            value.copy_(torch.randn_like(value) * (0.3 if name.startswith("b") or name == "r_mag" else 1.0))
    return sae


SET = (
    "model_name: owner/model\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
    "feature_output_hook: mlp.hook_out\n"
)


def transcoder_layer(
    folder: Path, config: str | None = None, d_out: int = OUT, **extra: Tensor
) -> tuple[Path, dict[str, Tensor]]:
    """A transcoder of circuit-tracer, and the config of its set."""
    w = {"W_enc": random(F, D), "W_dec": random(F, d_out), "b_enc": random(F) * 0.1, "b_dec": random(d_out)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**w, **extra}, folder / "layer_3.safetensors")
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return folder / "layer_3.safetensors", w
