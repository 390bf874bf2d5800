"""circuit-tracer's sets of transcoders: what their config says their layers select, and files of either layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import saekernels as sk
from zoo import OUT, SET, D, F, K, X, random, same, topk, transcoder_layer


def test_circuit_tracer_sets_say_in_their_config_what_their_layers_select(tmp_path: Path) -> None:
    path, w = transcoder_layer(tmp_path, SET + f"activation: topk\nk: {K}\n")
    z = X @ w["W_enc"].T + w["b_enc"]
    for options in ({}, {"k": K}):
        sae = sk.load(path, **options)
        assert sae.activation == sk.TopK(K, relu=False)
        same(sae, topk(z) @ w["W_dec"] + w["b_dec"])
    assert sae.metadata is not None
    assert (sae.metadata.model, sae.metadata.reads, sae.metadata.writes) == (
        "owner/model", "blocks.3.mlp.hook_in", "blocks.3.mlp.hook_out",
    )  # fmt: skip
    with pytest.raises(sk.FormatError, match=rf"k is \[4, {K}\], need one value"):
        sk.load(path, k=4)
    transcoder_layer(tmp_path, SET + "activation: relu\n")
    same(sk.load(path), z.relu() @ w["W_dec"] + w["b_dec"])
    transcoder_layer(tmp_path, SET)
    same(sk.load(path, k=3), topk(z, 3) @ w["W_dec"] + w["b_dec"])


def test_circuit_tracer_layers_may_hold_their_own_k(tmp_path: Path) -> None:
    path, w = transcoder_layer(tmp_path, k=torch.tensor(K))
    same(sk.load(path), topk(X @ w["W_enc"].T + w["b_enc"]) @ w["W_dec"] + w["b_dec"])
    transcoder_layer(tmp_path, SET + "activation: relu\n", k=torch.tensor(K))
    with pytest.raises(sk.FormatError, match=r"its tensors are of 'topk', but .* says 'relu'"):
        sk.load(path)
    transcoder_layer(tmp_path, SET + "activation: topk\nk: 3\n", k=torch.tensor(K))
    with pytest.raises(sk.FormatError, match=rf"k is \[3, {K}\]"):
        sk.load(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("activation: topk\n", "k is in no file"),
        ("activation: topk\nk: many\n", "'k' is 'many', need a positive integer"),
        ("activation: topk\nk: 4.5\n", "'k' is 4.5, need a positive integer"),
        ("activation: topk\nk: [4]\n", "'k' is [4], need a positive integer"),
        ("activation: topk\nk: true\n", "'k' is True, need a positive integer"),
        ("activation: jumprelu\n", "need thresholds in the file"),
        ("activation: gelu\n", "need relu, topk or jumprelu"),
        ("model_kind: cross_layer_transcoder\n", "'model_kind' is 'cross_layer_transcoder'"),
        ("- a list\n", "got a YAML list"),
        ("a: [\n", "not a readable YAML config"),
        ("a: !!python/object/apply:os.system ['true']\n", "not a readable YAML config"),
    ],
)
def test_circuit_tracer_sets_that_cannot_be(config: str, message: str, tmp_path: Path) -> None:
    path, _ = transcoder_layer(tmp_path, config)
    with pytest.raises(sk.FormatError) as caught:
        sk.load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_circuit_tracer_decoders_of_either_layout(tmp_path: Path) -> None:
    w = {"W_enc": random(F, D), "b_enc": random(F) * 0.1, "b_dec": random(OUT)}
    decoder = random(F, OUT)
    right = (X @ w["W_enc"].T + w["b_enc"]).relu() @ decoder + w["b_dec"]
    for number, stored in enumerate((decoder, decoder.T.contiguous())):
        save_file({**w, "W_dec": stored}, tmp_path / f"layer_{number}.safetensors")
        same(sk.load(tmp_path / f"layer_{number}.safetensors"), right)
