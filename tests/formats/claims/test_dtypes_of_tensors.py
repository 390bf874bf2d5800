"""Tensors of several dtypes in one file: the widest holds all of them, so nothing is rounded unless it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk
from saekernels.cli import main
from saekernels.formats.describe import describe
from zoo import D, F, K, dictionary, llama, random

HALF = {"W_enc": random(D, F).bfloat16(), "W_dec": random(F, D).bfloat16()}
W = {**HALF, "b_enc": random(F) * 0.3, "b_dec": random(D) * 0.3}
ROWS = {**W, "W_enc": W["W_enc"].T.contiguous()}
THETA = random(F, seed=3).abs()


def linear(encoder: str, decoder: str) -> dict[str, Tensor]:
    both = {f"{encoder}.weight": ROWS["W_enc"], f"{encoder}.bias": W["b_enc"]}
    return {**both, f"{decoder}.weight": W["W_dec"].T.contiguous()}


def goodfire(folder: Path) -> Path:
    torch.save({**linear("encoder_linear", "decoder_linear"), "decoder_linear.bias": W["b_dec"]}, folder / "a.pt")
    return folder / "a.pt"


def openai(folder: Path) -> Path:
    named = {name: value for name, value in linear("encoder", "decoder").items() if name != "encoder.bias"}
    torch.save({**named, "latent_bias": W["b_enc"], "pre_bias": W["b_dec"]}, folder / "a.pt")
    return folder / "a.pt"


def dictionary_learning(folder: Path) -> Path:
    return dictionary(folder, {**linear("encoder", "decoder"), "bias": W["b_dec"]})


def gemma_scope(folder: Path) -> Path:
    halves = {name: value.half().numpy() if value.dim() == 2 else value.numpy() for name, value in W.items()}
    np.savez(folder / "params.npz", **halves, threshold=THETA.numpy())
    return folder


def gemma_scope_2(folder: Path) -> Path:
    save_file({**W, "threshold": THETA}, folder / "params.safetensors")
    return folder


def llama_scope(folder: Path) -> Path:
    llama(folder, {"norm_activation": "inference", "act_fn": "relu"}, "v2")
    tensors = {"W_E": W["W_enc"], "W_D": W["W_dec"], "b_E": W["b_enc"], "b_D": W["b_dec"]}
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def qwen_scope(folder: Path) -> Path:
    path = folder / f"x-L0_{K}" / "layer3.sae.pt"
    path.parent.mkdir()
    torch.save({**ROWS, "W_dec": W["W_dec"].T.contiguous()}, path)
    return path


def circuit_tracer(folder: Path) -> Path:
    save_file(ROWS, folder / "layer_3.safetensors")
    return folder / "layer_3.safetensors"


def state_dict(folder: Path) -> Path:
    torch.save({**W, "cfg": {"activation": "relu", "apply_b_dec_to_input": True}}, folder / "a.pt")
    return folder / "a.pt"


def saelens(folder: Path) -> Path:
    save_file(W, folder / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": D, "d_sae": F, "apply_b_dec_to_input": True, "metadata": {}}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


MAKERS: list[Callable[[Path], Path]] = [
    goodfire, openai, dictionary_learning, gemma_scope, gemma_scope_2, llama_scope, qwen_scope, circuit_tracer,
    state_dict, saelens,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_biases_beside_half_matrices_keep_their_bits(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    folder.mkdir()
    path = make(folder)
    half = torch.float16 if make is gemma_scope else torch.bfloat16
    for dtype in (None, torch.float32):
        sae = sk.load(path, dtype=dtype)
        assert {value.dtype for value in sae.state_dict().values()} == {torch.float32}
        assert torch.equal(sae.b_enc, W["b_enc"]), "which a half would round"
        assert torch.equal(sae.b_dec, W["b_dec"])
        assert torch.equal(sae.W_enc, W["W_enc"].to(half).float().T)
        assert torch.equal(sae.W_dec, W["W_dec"].to(half).float())
    told = describe(path)
    assert told["dtype"] == "float32"
    assert told["memory_bytes"] == 4 * sum(value.numel() for value in sae.state_dict().values())
    if make is not qwen_scope:  # SAELens has no TopK without a ReLU
        assert main(["convert", str(path), str(tmp_path / "out"), "--dtype", "float32"]) == 0
        assert torch.equal(sk.load(tmp_path / "out").b_enc, W["b_enc"])
    assert torch.equal(sk.load(path, dtype=torch.bfloat16).b_enc, W["b_enc"].bfloat16()), "asked for"


def test_one_dtype_stays_it(tmp_path: Path) -> None:
    halves = {name: value.bfloat16() for name, value in W.items()}
    save_file({**halves, "W_enc": halves["W_enc"].T.contiguous()}, tmp_path / "layer_3.safetensors")
    assert {value.dtype for value in sk.load(tmp_path).state_dict().values()} == {torch.bfloat16}
    llama(tmp_path / "llama", {"norm_activation": "inference", "act_fn": "relu", "use_decoder_bias": False}, "v2")
    tensors = {"W_E": halves["W_enc"], "W_D": halves["W_dec"], "b_E": halves["b_enc"]}
    save_file(tensors, tmp_path / "llama" / "sae_weights.safetensors")
    assert sk.load(tmp_path / "llama").b_dec.dtype == torch.bfloat16, "zeros that are in no file widen nothing"


def test_sparsifys_own_loader_has_one_dtype(tmp_path: Path) -> None:
    """W_dec's, the first by name; what that rounds is told."""
    both = {"encoder.weight": ROWS["W_enc"], "encoder.bias": W["b_enc"]}
    save_file({**both, "W_dec": W["W_dec"], "b_dec": W["b_dec"]}, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": D, "num_latents": F, "k": K}))
    with pytest.warns(UserWarning, match=r"rounded to torch\.bfloat16, W_dec's, as in sparsify"):
        sae = sk.load(tmp_path, dtype=torch.float32)
    assert torch.equal(sae.b_enc, W["b_enc"].bfloat16().float())
    save_file({**both, "W_dec": W["W_dec"].float(), "b_dec": W["b_dec"]}, tmp_path / "sae.safetensors")
    assert torch.equal(sk.load(tmp_path).b_enc, W["b_enc"])


def one_threshold(folder: Path, kind: str) -> Path:
    tensors: dict[str, Any] = {**W, "threshold": torch.tensor(0.3)}
    halves = {name: value.bfloat16() if name != "threshold" else value for name, value in tensors.items()}
    if kind == "circuit-tracer":
        save_file({**halves, "W_enc": halves["W_enc"].T.contiguous()}, folder / "layer_3.safetensors")
        return folder / "layer_3.safetensors"
    if kind == "state dict":
        torch.save({**halves, "cfg": {"activation": "batchtopk", "apply_b_dec_to_input": True}}, folder / "a.pt")
        return folder / "a.pt"
    named = {name: value.bfloat16() for name, value in linear("encoder", "decoder").items()}
    own = {**named, "b_dec": halves["b_dec"], "threshold": tensors["threshold"], "k": torch.tensor(K)}
    return dictionary(folder, own, {"dict_class": "BatchTopKSAE"})


@pytest.mark.parametrize("kind", ["circuit-tracer", "state dict", "dictionary_learning"])
def test_one_threshold_beside_half_weights_is_not_rounded(kind: str, tmp_path: Path) -> None:
    sae = sk.load(one_threshold(tmp_path, kind))
    assert sae.W_enc.dtype == torch.bfloat16
    assert sae.threshold is not None
    assert torch.equal(sae.threshold, torch.full_like(sae.threshold, 0.3, dtype=torch.float32))
