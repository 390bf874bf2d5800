"""OpenAI, Goodfire, Qwen Scope and circuit-tracer, a file for each SAE: made here, read by formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk
from zoo import OUT, D, F, K, check, jump, openai, random, topk


def test_openai_normalises_where_it_selects(tmp_path: Path) -> None:
    w = openai(tmp_path / "7.pt")

    def formula(x: Tensor) -> Tensor:
        mu, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        normed = (x - mu) / (std + 1e-5)
        z = topk((normed - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"])
        return (z @ w["decoder.weight"].T + w["pre_bias"]) * std + mu

    check(tmp_path / "7.pt", formula)
    check(tmp_path, formula)
    openai(tmp_path / "7.pt", activation="ReLU", activation_state_dict={})
    check(
        tmp_path / "7.pt",
        lambda x: (
            ((x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]).relu() @ w["decoder.weight"].T
            + w["pre_bias"]
        ),
    )
    openai(tmp_path / "7.pt", activation_state_dict={"k": K, "postact_fn": "Tanh"})
    with pytest.raises(sk.FormatError, match="'postact_fn' is 'Tanh', need 'ReLU' or 'Identity'"):
        sk.load(tmp_path / "7.pt")


def test_goodfire(tmp_path: Path) -> None:
    w = {"encoder_linear.weight": random(F, D), "encoder_linear.bias": random(F),
         "decoder_linear.weight": random(D, F), "decoder_linear.bias": random(D)}  # fmt: skip
    torch.save(w, tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth")
    check(
        tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth",
        lambda x: (
            (x @ w["encoder_linear.weight"].T + w["encoder_linear.bias"]).relu() @ w["decoder_linear.weight"].T
            + w["decoder_linear.bias"]
        ),
    )


def test_qwen_scope_has_its_k_in_its_name(tmp_path: Path) -> None:
    w = {"W_enc": random(F, D), "W_dec": random(D, F), "b_enc": random(F) * 0.1, "b_dec": random(D)}

    def formula(x: Tensor) -> Tensor:
        return topk(x @ w["W_enc"].T + w["b_enc"]) @ w["W_dec"].T + w["b_dec"]

    folder = tmp_path / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    folder.mkdir()
    torch.save(w, folder / "layer3.sae.pt")
    check(folder / "layer3.sae.pt", formula)
    torch.save(w, folder / "layer4.sae.pt")
    with pytest.raises(
        sk.FormatError, match=r"need one of its files of weights by name: 'layer3\.sae\.pt' or 'layer4\.sae\.pt'"
    ):
        sk.load(folder)
    (tmp_path / "plain").mkdir()
    torch.save(w, tmp_path / "plain" / "layer3.sae.pt")
    check(tmp_path / "plain" / "layer3.sae.pt", formula, k=K)
    with pytest.raises(sk.FormatError, match="k is in no file; give k"):
        sk.load(tmp_path / "plain" / "layer3.sae.pt")


def test_circuit_tracer_transcoders(tmp_path: Path) -> None:
    w = {"W_enc": random(F, D), "W_dec": random(F, OUT), "b_enc": random(F) * 0.1, "b_dec": random(OUT)}
    save_file(w, tmp_path / "layer_3.safetensors")
    relu = tmp_path / "layer_3.safetensors"
    check(relu, lambda x: (x @ w["W_enc"].T + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"])
    theta, skip = random(F, seed=4).abs(), random(OUT, D)
    save_file({**w, "activation_function.threshold": theta, "W_skip": skip}, tmp_path / "layer_4.safetensors")
    check(
        tmp_path / "layer_4.safetensors",
        lambda x: jump(x @ w["W_enc"].T + w["b_enc"], theta) @ w["W_dec"] + w["b_dec"] + x @ skip.T,
    )
    save_file({"W_enc_3": w["W_enc"], "b_enc_3": w["b_enc"]}, tmp_path / "W_enc_3.safetensors")
    with pytest.raises(sk.FormatError, match="cross-layer transcoders are no single SAE"):
        sk.load(tmp_path / "W_enc_3.safetensors")
    with pytest.raises(sk.FormatError, match=r"need one of its files of weights by name: 'W_enc_3\.safetensors' or"):
        sk.load(tmp_path)
