"""Loading and saving checkpoints: round trips, and one clear error for each way a file can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import saekernels as sk
from saekernels.sae.activations import Activation
from zoo import change_config, randomised, saelens_folder, sparsify_folder

SAELENS: list[tuple[Activation, dict[str, Any]]] = [
    (sk.ReLU(), {}),
    (sk.TopK(4), {"rescale_by_decoder_norm": True}),
    (sk.TopK(4), {"normalization": sk.LayerNorm()}),
    (sk.TopK(4), {"normalization": sk.Scale(1.7)}),
    (sk.AbsTopK(4), {"normalization": sk.ConstantNorm()}),
    (sk.JumpReLU(), {"pre_bias": "none"}),
    (sk.BatchTopK(4), {}),
    (sk.Gated(), {"pre_bias": "separate", "normalization": sk.Scale(0.4)}),
    (sk.ReLU(), {"pre_bias": "separate"}),
    (sk.ReLU(), {"d_out": 5, "pre_bias": "none"}),
    (sk.ReLU(), {"d_out": 5, "pre_bias": "none", "skip": True}),
    (sk.JumpReLU(), {"d_out": 5, "pre_bias": "none", "skip": True}),
]


@pytest.mark.parametrize("case", SAELENS, ids=[f"{a.name}-{'-'.join(o) or 'plain'}" for a, o in SAELENS])
def test_saelens_round_trip(case: tuple[Activation, dict[str, Any]], tmp_path: Path) -> None:
    activation, options = case
    sae = randomised(sk.SAE(8, 24, activation, **options))
    sk.save(sae, tmp_path / "sae", metadata={"hook_name": "blocks.0.hook_resid_post"})
    loaded = sk.load(tmp_path / "sae")
    x = torch.randn(30, 8)
    torch.testing.assert_close(loaded(x), sae(x), rtol=1e-4, atol=1e-4)
    assert not loaded.training
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == [
        "cfg.json",
        "sae_weights.safetensors",
    ]
    assert (
        json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"]["hook_name"] == "blocks.0.hook_resid_post"
    )


def change_tensors(folder: Path, file: str, **changes: Tensor | None) -> None:
    tensors = load_file(folder / file)
    tensors.update({name: value for name, value in changes.items() if value is not None})
    for name in [name for name, value in changes.items() if value is None]:
        del tensors[name]
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / file)


@pytest.mark.parametrize("config", [{}, {"activation": "groupmax"}, {"transcode": True, "skip_connection": True}])
def test_sparsify_formula(config: dict[str, Any], tmp_path: Path) -> None:
    folder = sparsify_folder(tmp_path / "sae", **config)
    raw = load_file(folder / "sae.safetensors")
    sae, x = sk.load(folder), torch.randn(20, 8)
    pre = (x if config.get("transcode") else x - raw["b_dec"]) @ raw["encoder.weight"].T + raw["encoder.bias"]
    if config.get("activation") == "groupmax":
        best = pre.relu().unflatten(-1, (4, -1)).max(-1)
        codes = torch.zeros_like(pre).scatter(1, best.indices + torch.arange(4) * 6, best.values)
    else:
        best = pre.relu().topk(4)
        codes = torch.zeros_like(pre).scatter(1, best.indices, best.values)
    expected = codes @ raw["W_dec"] + raw["b_dec"]
    if config.get("skip_connection"):
        expected = expected + x @ raw["W_skip"].T
    torch.testing.assert_close(sae(x), expected, rtol=1e-5, atol=1e-5)


def test_saelens_before_6_0(tmp_path: Path) -> None:
    """TopK hidden behind architecture `standard`, and a fine-tuned scaling factor on the codes."""
    folder = saelens_folder(tmp_path / "sae", architecture="standard", k=..., activation_fn_str="topk")
    change_config(
        folder,
        activation_fn_kwargs={"k": 4},
        hook_point="blocks.0.hook_resid_pre",
        normalize_activations=False,
        metadata=...,
    )
    plain = sk.load(folder)
    assert plain.activation == sk.TopK(4)
    factor = torch.rand(24) + 0.5
    change_tensors(folder, "sae_weights.safetensors", scaling_factor=factor)
    change_config(folder, finetuning_scaling_factor=True)
    scaled, x = sk.load(folder), torch.randn(9, 8)
    torch.testing.assert_close(scaled.encode(x).values, plain.encode(x).values)
    torch.testing.assert_close(scaled(x), plain.encode(x).to_dense() * factor @ plain.W_dec + plain.b_dec)


def test_unfolded_scale_warns_and_can_be_given(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", normalize_activations="expected_average_only_in")
    with pytest.warns(UserWarning, match="running unscaled"):
        unscaled = sk.load(folder)
    x = torch.randn(9, 8)
    torch.testing.assert_close(sk.load(folder, input_scale=2.5)(x), unscaled(x * 2.5) / 2.5)


def test_dtype_device_and_precise_threshold(tmp_path: Path) -> None:
    sae = randomised(sk.SAE(8, 24, sk.JumpReLU()))
    sk.save(sae, tmp_path / "sae")
    half = sk.load(tmp_path / "sae", dtype=torch.bfloat16)
    assert half.W_enc.dtype == torch.bfloat16
    assert half.threshold is not None
    assert torch.equal(half.threshold, sae.threshold)
    change_config(tmp_path / "sae", dtype="torch.bfloat16")
    assert sk.load(tmp_path / "sae").W_dec.dtype == torch.bfloat16
    assert half(torch.randn(3, 8)).shape == (3, 8)


def test_a_file_of_the_folder_will_do(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae")
    assert sk.load(folder / "cfg.json").n_latents == 24


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown architecture": (lambda f: change_config(f, architecture="temporal"), "'architecture' is 'temporal', need"),
    "no d_in": (lambda f: change_config(f, d_in=...), "'d_in' is None, need a positive integer"),
    "k of zero": (lambda f: change_config(f, k=0), "'k' is 0, need a positive integer"),
    "k too large": (lambda f: change_config(f, k=25), "k = 25, need at most n_latents = 24"),
    "boolean size": (lambda f: change_config(f, d_sae=True), "'d_sae' is True"),
    "another width": (lambda f: change_config(f, d_in=9), r"'W_enc' has shape \[8, 24\], the config needs \[9, 24\]"),
    "whitening": (lambda f: change_config(f, normalize_activations="covariance_whitening"), "'covariance_whitening'"),
    "not JSON": (lambda f: (f / "cfg.json").write_text("{"), "not a readable JSON config"),
    "a JSON list": (lambda f: (f / "cfg.json").write_text("[]"), "got a JSON list, need an object"),
    "no config": (lambda f: (f / "cfg.json").unlink(), r"cfg\.json: there is no such file, need it beside"),
    "binary config": (lambda f: (f / "cfg.json").write_bytes(b"\xff\xfe\x00"), "not a readable JSON config"),
    "missing tensor": (lambda f: change_tensors(f, "sae_weights.safetensors", b_enc=None), "tensor 'b_enc' is missing"),
    "extra tensor": (
        lambda f: change_tensors(f, "sae_weights.safetensors", threshold=torch.zeros(24)),
        r"unexpected tensors \['threshold'\]",
    ),
    "integer tensor": (
        lambda f: change_tensors(f, "sae_weights.safetensors", b_enc=torch.zeros(24, dtype=torch.int64)),
        "'b_enc' has dtype torch.int64",
    ),
    "truncated": (
        lambda f: (f / "sae_weights.safetensors").write_bytes((f / "sae_weights.safetensors").read_bytes()[:-100]),
        "damaged or not a safetensors file",
    ),
    "garbage": (
        lambda f: (f / "sae_weights.safetensors").write_bytes(b"\x80\x02pickle"),
        "damaged or not a safetensors",
    ),
    "empty": (lambda f: (f / "sae_weights.safetensors").write_bytes(b""), "damaged or not a safetensors file"),
    "no weights": (lambda f: (f / "sae_weights.safetensors").unlink(), "need a checkpoint folder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_checkpoints(name: str, tmp_path: Path) -> None:
    spoil, message = WRONG[name]
    folder = saelens_folder(tmp_path / "sae")
    spoil(folder)
    with pytest.raises(sk.FormatError, match=message):
        sk.load(folder)


def test_wrong_sparsify_checkpoints(tmp_path: Path) -> None:
    for number, (config, message) in enumerate(
        [
            ({"signed": True}, "'signed' is true"),
            ({"activation": "gelu"}, "'activation' is 'gelu', need one of"),
            ({"num_latents": 25}, r"'encoder.weight' has shape \[24, 8\], the config needs \[25, 8\]"),
            ({"activation": "groupmax", "k": 5}, "need a k that divides n_latents = 24"),
        ]
    ):
        with pytest.raises(sk.FormatError, match=message):
            sk.load(sparsify_folder(tmp_path / str(number), **config))


def test_missing_path_and_parent_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: got .*nowhere"):
        sk.load(tmp_path / "nowhere")
    saelens_folder(tmp_path / "layer_0")
    with pytest.raises(sk.FormatError, match="need one of the checkpoints inside by name: 'layer_0'"):
        sk.load(tmp_path)


def test_save_refuses_what_saelens_has_no_name_for(tmp_path: Path) -> None:
    for sae, lacks in (
        (sk.SAE(8, 24, sk.GroupMax(4)), "GroupMax"),
        (sk.SAE(8, 24, sk.TopK(4), d_out=4, pre_bias="none"), "TopK transcoders"),
        (sk.SAE(8, 24, sk.TopK(4), skip=True), "TopK transcoders"),
        (sk.SAE(8, 24, sk.TopK(4, relu=False)), "TopK without a ReLU"),
        (sk.SAE(8, 24, sk.AbsTopK(4), skip=True), "AbsTopK transcoders"),
    ):
        with pytest.raises(sk.FormatError, match=f"need an architecture of SAELens, which has none for {lacks}: "):
            sk.save(sae, tmp_path / "sae")
        assert not (tmp_path / "sae").exists()
