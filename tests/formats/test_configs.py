"""What lies beside the weights: each field of a config is honoured, refused, kept as metadata, or told as unknown."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk
from zoo import OUT, SET, D, F, K, X, random, same, topk, transcoder_layer


def lm_saes(folder: Path, names: str, bias: bool, **config: Any) -> dict[str, Tensor]:
    w = {"W_enc": random(F, D), "W_dec": random(F, D), "b_enc": random(F) * 0.2, "b_dec": random(D) if bias else None}
    tensors = (
        {"encoder.weight": w["W_enc"], "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
        if names == "v1"
        else {"W_E": w["W_enc"].T, "b_E": w["b_enc"], "W_D": w["W_dec"]}
    )
    if bias:
        tensors["decoder.bias" if names == "v1" else "b_D"] = w["b_dec"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "sae_weights.safetensors")
    base = {"d_model": D, "hook_point_in": "blocks.3.hook_mlp_in", "hook_point_out": "blocks.3.hook_mlp_out"}
    base |= {"act_fn": "topk", "top_k": K, "norm_activation": "inference", "sparsity_include_decoder_norm": False}
    (folder / "config.json").write_text(json.dumps({**base, **config}))
    return w


@pytest.mark.parametrize("names", ["v1", "v2"])
def test_lm_saes_without_a_decoder_bias(names: str, tmp_path: Path) -> None:
    w = lm_saes(tmp_path / "a", names, False, use_decoder_bias=False)
    sae = sk.load(tmp_path / "a")
    same(sae, topk(X @ w["W_enc"].T + w["b_enc"]) @ w["W_dec"])
    assert sae.metadata is not None
    assert (sae.metadata.reads, sae.metadata.writes) == ("blocks.3.hook_mlp_in", "blocks.3.hook_mlp_out")
    lm_saes(tmp_path / "b", names, True, use_decoder_bias=False)
    lm_saes(tmp_path / "c", names, False, use_decoder_bias=True)
    for name, there in (("b", "is in"), ("c", "is not in")):
        with pytest.raises(sk.FormatError, match=f"'use_decoder_bias' is .*, but '.*' {there} sae_weights"):
            sk.load(tmp_path / name)


@pytest.mark.parametrize("names", ["v1", "v2"])
@pytest.mark.parametrize("apply", [False, True])
@pytest.mark.parametrize("out", [4.0, 2.5])
def test_lm_saes_may_take_the_decoder_bias_from_the_scaled_input(
    names: str, apply: bool, out: float, tmp_path: Path
) -> None:
    norms = {"norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 4.0, "out": out}}
    w = lm_saes(tmp_path, names, True, use_decoder_bias=True, apply_decoder_bias_to_pre_encoder=apply, **norms)
    inward, outward = math.sqrt(D) / 4.0, math.sqrt(D) / out
    z = topk((X * inward - (w["b_dec"] if apply else 0)) @ w["W_enc"].T + w["b_enc"])
    same(sk.load(tmp_path), (z @ w["W_dec"] + w["b_dec"]) / outward)


def saelens(folder: Path, weights: dict[str, Tensor] | None = None, **config: Any) -> dict[str, Tensor]:
    w = {"W_enc": random(D, F), "W_dec": random(F, D), "b_enc": random(F) * 0.1, "b_dec": random(D)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**w, **(weights or {})}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": F, "apply_b_dec_to_input": True, **config}))
    return w


@pytest.mark.parametrize("finetuned", [True, False, None])
def test_saelens_scaling_factors_count_where_the_config_says_so(finetuned: bool | None, tmp_path: Path) -> None:
    factor = random(F, seed=3)
    config = {} if finetuned is None else {"finetuning_scaling_factor": finetuned}
    w = saelens(tmp_path, {"scaling_factor": factor}, activation_fn="relu", **config)
    z = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    if finetuned:
        same(sk.load(tmp_path), (z * factor) @ w["W_dec"] + w["b_dec"])
        return
    with pytest.raises(
        sk.FormatError, match="'finetuning_scaling_factor' is not true, but the file has a scaling_factor"
    ):
        sk.load(tmp_path)
    saelens(tmp_path, {"scaling_factor": torch.ones(F)}, activation_fn="relu", **config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(sk.load(tmp_path), z @ w["W_dec"] + w["b_dec"])


ABOUT = {
    "model_name": "gpt2-small", "hook_name": "blocks.2.attn.hook_z", "hook_head_index": 1, "prepend_bos": True,
    "context_size": 128, "dataset_path": "owner/text", "model_from_pretrained_kwargs": {"center_writing_weights": True},
}  # fmt: skip


@pytest.mark.parametrize("layout", ["metadata", "flat", "old names"])
def test_saelens_metadata_of_every_layout(layout: str, tmp_path: Path) -> None:
    if layout == "metadata":
        saelens(tmp_path, architecture="standard", metadata=ABOUT)
    else:
        renamed = {"hook_name": "hook_point", "hook_head_index": "hook_point_head_index"} if layout != "flat" else {}
        about = {renamed.get(name, name): value for name, value in ABOUT.items()}
        saelens(tmp_path, activation_fn_str="relu", lr=1e-3, seed=7, use_ghost_grads=True, **about)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sk.load(tmp_path).metadata
    assert found is not None
    assert (found.format, found.model, found.reads, found.writes, found.head) == (
        "SAELens", "gpt2-small", "blocks.2.attn.hook_z", "blocks.2.attn.hook_z", 1,
    )  # fmt: skip
    assert (found.prepend_bos, found.context, found.dataset) == (True, 128, "owner/text")
    assert found.model_options == {"center_writing_weights": True}
    assert found.ignored == ()


@pytest.mark.parametrize("name", ["hook_head_index", "hook_point_head_index"])
@pytest.mark.parametrize("head", ["2", 2.0, True, -1])
def test_a_head_that_is_no_number_of_one_is_refused(name: str, head: object, tmp_path: Path) -> None:
    saelens(tmp_path, architecture="standard", metadata={"hook_name": "blocks.2.attn.hook_z", name: head})
    with pytest.raises(sk.FormatError, match=rf"'hook_head_index' is {head!r}, need the number of a head, from 0"):
        sk.load(tmp_path)


def test_fields_that_nobody_knows_are_told_and_kept_in_mind(tmp_path: Path) -> None:
    saelens(tmp_path / "a", architecture="standard", twist=0.5, nothing=None, off=False)
    with pytest.warns(
        UserWarning, match=r"a/cfg\.json: fields that are not known here were not used: 'twist' \(0\.5\)"
    ):
        found = sk.load(tmp_path / "a").metadata
    assert found is not None
    assert found.ignored == ("twist",)
    path, _ = transcoder_layer(tmp_path / "b", SET + "gain: 2\n")
    with pytest.warns(UserWarning, match=r"'gain' \(2\)"):
        sk.load(path)
    lm_saes(tmp_path / "c", "v2", True, temperature=3)
    with pytest.warns(UserWarning, match=r"'temperature' \(3\)"):
        sk.load(tmp_path / "c")


def test_gemma_scope_2_configs_must_fit_their_tensors(tmp_path: Path) -> None:
    w = {"w_enc": random(D, F), "w_dec": random(F, OUT), "b_enc": random(F), "b_dec": random(OUT)}
    save_file({**w, "threshold": random(F).abs()}, tmp_path / "params.safetensors")
    about = {"model_name": "google/gemma-3-1b-pt", "hf_hook_point_in": "model.layers.5.a.output",
             "hf_hook_point_out": "model.layers.5.b.output", "architecture": "jump_relu"}  # fmt: skip
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**about, "affine_connection": False}))
    found = sk.load(tmp_path).metadata
    assert found is not None
    assert (found.model, found.reads, found.writes) == (
        "google/gemma-3-1b-pt", "model.layers.5.a.output", "model.layers.5.b.output",
    )  # fmt: skip
    for change, message in (
        ({"affine_connection": True}, "the file has no such matrix"),
        ({"architecture": "topk"}, "need 'jump_relu'"),
    ):
        config.write_text(json.dumps({**about, **change}))
        with pytest.raises(sk.FormatError, match=message):
            sk.load(tmp_path)
    config.unlink()
    factor = {"scaling_factor": torch.full((F,), 2.0)}
    save_file({**w, "threshold": random(F).abs(), **factor}, tmp_path / "params.safetensors")
    with pytest.raises(sk.FormatError, match="nothing says what it scales"):
        sk.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "model", "reads", "writes"),
    [
        ("gemma-scope-2b-pt-res", "google/gemma-2-2b", "blocks.20.hook_resid_post", "blocks.20.hook_resid_post"),
        ("gemma-scope-9b-it-att", "google/gemma-2-9b-it", "blocks.20.attn.hook_z", "blocks.20.attn.hook_z"),
        (
            "gemma-scope-2b-pt-transcoders",
            "google/gemma-2-2b",
            "blocks.20.ln2.hook_normalized",
            "blocks.20.hook_mlp_out",
        ),
    ],
)
def test_gemma_scope_files_are_where_their_folders_say(
    name: str, model: str, reads: str, writes: str, tmp_path: Path
) -> None:
    folder = tmp_path / name / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    w = {
        "W_enc": random(D, F),
        "W_dec": random(F, D),
        "b_enc": random(F),
        "b_dec": random(D),
        "threshold": random(F).abs(),
    }
    save_file(w, folder / "params.safetensors")
    found = sk.load(folder).metadata
    assert found is not None
    assert (found.model, found.reads, found.writes) == (model, reads, writes)


def test_dictionary_learning_configs_must_fit_their_tensors(tmp_path: Path) -> None:
    linear = {
        "encoder.weight": random(F, D),
        "encoder.bias": random(F),
        "decoder.weight": random(D, F),
        "b_dec": random(D),
    }
    torch.save({**linear, "k": torch.tensor(K), "threshold": torch.tensor(0.5)}, tmp_path / "ae.pt")
    trainer = {"dict_class": "AutoEncoderTopK", "k": K, "activation_dim": D, "dict_size": F, "lm_name": "owner/model",
               "submodule_name": "resid_post_layer_3", "layer": 3, "lr": 1e-4}  # fmt: skip
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"trainer": trainer}))
    found = sk.load(tmp_path).metadata
    assert found is not None
    assert (found.model, found.reads, found.other) == ("owner/model", "resid_post_layer_3", {"layer": 3})
    for change, message in (({"k": 9}, "its k is 5, but"), ({"dict_size": 41}, "'dict_size' is 41, but ae.pt has 40")):
        config.write_text(json.dumps({"trainer": {**trainer, **change}}))
        with pytest.raises(sk.FormatError, match=message):
            sk.load(tmp_path)
