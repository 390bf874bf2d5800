"""Gemma Scope and Llama Scope: files made here, read by formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk
from zoo import OUT, D, F, K, check, gemma, jump, llama, random, topk


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("d_out", [D, OUT])
def test_gemma_scope(suffix: str, d_out: int, tmp_path: Path) -> None:
    folder = tmp_path / "layer_20" / "width_16k" / "average_l0_71"
    w = gemma(folder, d_out, suffix)

    def formula(x: Tensor) -> Tensor:
        return jump(x @ w["W_enc"] + w["b_enc"], w["threshold"]) @ w["W_dec"] + w["b_dec"]

    sae = check(folder, formula)
    check(folder / f"params.{suffix}", formula)
    assert sae.activation == sk.JumpReLU()
    assert sae.pre_bias is None
    assert sae.d_out == d_out


def test_gemma_scope_of_embeddings_takes_them_unscaled(tmp_path: Path) -> None:
    w = gemma(tmp_path / "embedding" / "width_4k" / "average_l0_6")

    def formula(x: Tensor) -> Tensor:
        z = jump(x @ w["W_enc"] / math.sqrt(D) + w["b_enc"], w["threshold"])
        return z @ w["W_dec"] * math.sqrt(D) + w["b_dec"]

    check(tmp_path / "embedding" / "width_4k" / "average_l0_6", formula)


def test_gemma_scope_2_skips_and_cross_layer(tmp_path: Path) -> None:
    skip = random(D, OUT, seed=3)
    w = gemma(tmp_path / "a", OUT, "safetensors", affine_skip_connection=skip)
    check(
        tmp_path / "a",
        lambda x: jump(x @ w["W_enc"] + w["b_enc"], w["threshold"]) @ w["W_dec"] + w["b_dec"] + x @ skip,
    )
    gemma(tmp_path / "b", OUT, "safetensors", W_dec=random(F, 3, OUT))
    with pytest.raises(sk.FormatError, match="cross-layer transcoder"):
        sk.load(tmp_path / "b")


def test_llama_scope_scales_its_threshold_with_its_inputs(tmp_path: Path) -> None:
    """theta is in raw units and the weights in scaled ones, so both are multiplied by s (SAELens' loader agrees)."""
    norm = 17.0
    config = {"d_sae": F, "jump_relu_threshold": 0.4, "dataset_average_activation_norm": {"in": norm, "out": norm}}
    w, s = llama(tmp_path, config), math.sqrt(D) / norm

    def formula(x: Tensor) -> Tensor:
        return (jump(s * x @ w["W_enc"].T + w["b_enc"], 0.4 * s) @ w["W_dec"] + w["b_dec"]) / s

    sae = check(tmp_path, formula)
    assert sae.normalization == sk.Scale(s)
    check(tmp_path / "checkpoints" / "final.safetensors", formula)
    check(tmp_path / "hyperparams.json", formula)


def test_llama_scope_transcoders_have_two_scales(tmp_path: Path) -> None:
    config = {"d_sae": F, "jump_relu_threshold": 0.4, "dataset_average_activation_norm": {"in": 8.0, "out": 2.0}}
    w, s = llama(tmp_path, config), math.sqrt(D) / 8.0
    check(
        tmp_path,
        lambda x: (jump(s * x @ w["W_enc"].T + w["b_enc"], 0.4 * s) @ w["W_dec"] + w["b_dec"]) / (math.sqrt(D) / 2.0),
    )


def test_llama_scope_thresholds_by_latent_and_decoder_norms(tmp_path: Path) -> None:
    log = random(F, seed=2)
    config = {"expansion_factor": F / D, "norm_activation": "inference", "act_fn": "jumprelu"}
    w = llama(tmp_path / "a", config, log_jumprelu_threshold=log)
    check(tmp_path / "a", lambda x: jump(x @ w["W_enc"].T + w["b_enc"], log.exp()) @ w["W_dec"] + w["b_dec"])
    w = llama(tmp_path / "b", {**config, "sparsity_include_decoder_norm": True}, log_jumprelu_threshold=log)
    n = w["W_dec"].norm(dim=1)
    check(
        tmp_path / "b",
        lambda x: jump((x @ w["W_enc"].T + w["b_enc"]) * n, log.exp()) / n @ w["W_dec"] + w["b_dec"],
    )


def test_llamascopium(tmp_path: Path) -> None:
    base = {"sae_type": "sae", "expansion_factor": F / D, "act_fn": "topk", "top_k": K, "norm_activation": "token-wise"}
    w = llama(tmp_path / "a", base, "v2")

    def token_wise(x: Tensor) -> Tensor:
        s = math.sqrt(D) / x.norm(dim=-1, keepdim=True)
        return (topk(x * s @ w["W_enc"].T + w["b_enc"]) @ w["W_dec"] + w["b_dec"]) / s

    check(tmp_path / "a", token_wise)
    norm = {"dataset_average_activation_norm.h": torch.tensor(9.0)}
    w = llama(tmp_path / "b", {**base, "act_fn": "relu", "norm_activation": "dataset-wise"}, "v2", **norm)
    s = math.sqrt(D) / 9.0
    check(tmp_path / "b", lambda x: ((s * x @ w["W_enc"].T + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"]) / s)
    log = {"activation_function.log_jumprelu_threshold": random(F, seed=4)}
    w = llama(tmp_path / "c", {**base, "act_fn": "batchtopk", "norm_activation": "inference"}, "v2", **log)
    theta = next(iter(log.values())).exp()
    check(tmp_path / "c", lambda x: jump(x @ w["W_enc"].T + w["b_enc"], theta) @ w["W_dec"] + w["b_dec"])
    pt = {name: value.contiguous() for name, value in
          {"W_E": w["W_enc"].T, "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"], **log}.items()}  # fmt: skip
    (tmp_path / "d").mkdir()
    torch.save({"sae": pt, "version": "2.0"}, tmp_path / "d" / "sae_weights.pt")
    (tmp_path / "d" / "config.json").write_text((tmp_path / "c" / "config.json").read_text())
    check(tmp_path / "d", lambda x: jump(x @ w["W_enc"].T + w["b_enc"], theta) @ w["W_dec"] + w["b_dec"])


def test_an_average_norm_that_is_nowhere_is_said(tmp_path: Path) -> None:
    config = {"expansion_factor": F / D, "norm_activation": "dataset-wise", "act_fn": "relu"}
    w = llama(tmp_path, config)
    with pytest.warns(UserWarning, match="their average norm is in no file"):
        check(tmp_path, lambda x: (x @ w["W_enc"].T + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"])
    check(
        tmp_path,
        lambda x: ((0.5 * x @ w["W_enc"].T + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"]) / 0.5,
        input_scale=0.5,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sae_type": "crosscoder"}, "a 'crosscoder' is no SAE"),
        ({"use_glu_encoder": True}, "a gated linear encoder"),
        ({"norm_activation": "batch-wise"}, "'norm_activation' is 'batch-wise'"),
        ({"act_fn": "batchtopk"}, "selects over a whole batch"),
        ({"act_fn": "topk", "top_k": "many"}, "'top_k' is 'many'"),
        ({"act_fn": "jumprelu"}, "'jump_relu_threshold' is None"),
        ({"norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": -1}}, "need positive numbers"),
        ({"norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": "x"}}, "need numbers"),
        ({"d_model": D + 1}, "the config needs"),
    ],
)
def test_llama_scopes_that_cannot_be(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    llama(tmp_path, {"expansion_factor": F / D, "norm_activation": "inference", "act_fn": "relu", **change}, "v2")
    with pytest.raises(sk.FormatError) as caught:
        sk.load(tmp_path)
    assert message in str(caught.value)
