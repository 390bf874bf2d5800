"""Where a tool's own loader changes what a config says, or a message names what is not there: as there, and truly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk
from cli import fails
from saekernels.cli import main
from saekernels.formats.describe import describe
from zoo import D, F, K, check, gemma, jump, llama, random, topk

NORMS = {"in": 11.0, "out": 11.0}


@pytest.mark.parametrize("names", ["hyperparams.json", "config.json"])
@pytest.mark.parametrize("by_norms", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.0, None])
def test_llama_scopes_topk_with_a_threshold_is_a_jump_relu(
    names: str, by_norms: bool, threshold: float | None, tmp_path: Path
) -> None:
    """lm_saes: standardise the norms, make decoder rows unit vectors, then JumpReLU where the threshold is above 0."""
    config = {
        "act_fn": "topk", "top_k": K, "jump_relu_threshold": threshold, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": NORMS, "sparsity_include_decoder_norm": by_norms,
    }  # fmt: skip
    w = llama(tmp_path, {**config, **({"d_sae": F} if names == "hyperparams.json" else {})})
    scale = math.sqrt(D) / 11
    norms = w["W_dec"].norm(dim=1) if by_norms else torch.ones(F)

    def formula(x: Tensor) -> Tensor:
        z = (x @ w["W_enc"].T + w["b_enc"] / scale) * norms
        codes = jump(z, threshold) if threshold else topk(z)
        return codes @ (w["W_dec"] / norms[:, None]) + w["b_dec"] / scale

    sae = check(tmp_path, formula)
    assert isinstance(sae.activation, sk.JumpReLU if threshold else sk.TopK)


@pytest.mark.parametrize("act_fn", ["topk", "jumprelu"])
def test_a_scale_that_is_given_scales_llama_scopes_threshold(act_fn: str, tmp_path: Path) -> None:
    """It is in units of the input as it is, as where the file holds the scale."""
    config = {"d_sae": F, "act_fn": act_fn, "top_k": K, "jump_relu_threshold": 0.5, "norm_activation": "dataset-wise"}
    llama(tmp_path / "given", config)
    llama(tmp_path / "own", {**config, "dataset_average_activation_norm": NORMS})
    own = sk.load(tmp_path / "own")
    x = random(9, D, seed=5)
    given = sk.load(tmp_path / "given", input_scale=math.sqrt(D) / 11)
    torch.testing.assert_close(given(x), own(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "inference"])
def test_llama_scope_without_a_norm(norm: str, tmp_path: Path) -> None:
    w = llama(tmp_path, {"d_sae": F, "act_fn": "relu", "norm_activation": norm})
    check(tmp_path, lambda x: (x @ w["W_enc"].T + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"])
    with pytest.raises(sk.FormatError, match=r"input_scale: got 0\.5, but .* takes activations as they are"):
        sk.load(tmp_path, input_scale=0.5)


def test_what_is_read_is_what_info_lists(tmp_path: Path) -> None:
    """hyperparams.json beside sae_weights.safetensors, which is SAELens' name: nothing of SAELens is looked for."""
    w = llama(tmp_path, {"d_sae": F, "act_fn": "relu", "norm_activation": "inference"})
    (tmp_path / "checkpoints" / "final.safetensors").rename(tmp_path / "sae_weights.safetensors")
    check(tmp_path, lambda x: (x @ w["W_enc"].T + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"])
    told = describe(tmp_path)
    assert [Path(file["path"]).name for file in told["files"]] == ["hyperparams.json", "sae_weights.safetensors"]
    assert main(["info", str(tmp_path)]) == 0


def test_a_format_that_fails_has_read_nothing(tmp_path: Path) -> None:
    """A cfg.json that SAELens cannot read is not listed beside the Gemma Scope files that lie there too."""
    gemma(tmp_path)
    save_file({"x": torch.ones(2)}, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "none of theirs"}))
    told = describe(tmp_path)
    assert [Path(file["path"]).name for file in told["files"]] == ["params.npz"]


def test_what_is_scaled_of_an_embedding_sae_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "embedding" / "width_4k" / "average_l0_6"
    w = gemma(folder)
    r = math.sqrt(D)
    check(folder, lambda x: jump(x / r @ w["W_enc"] + w["b_enc"], w["threshold"]) @ w["W_dec"] * r + w["b_dec"])
    assert main(["info", str(folder)]) == 0
    scaled = f"W_enc / sqrt({D}), W_dec * sqrt({D}), b_dec as it is"
    assert f"kept             scaled='{scaled}'" in capsys.readouterr().out
    gemma(tmp_path / "layer")
    assert sk.load(tmp_path / "layer").metadata.other == {}  # type: ignore[union-attr]


ARENA = {"W_enc": random(1, D, F), "b_enc": random(1, F), "b_dec": random(1, D)}
TOY = {"n_inst": 1, "d_in": D, "d_sae": F, "sparsity_coeff": 0.2, "ste_epsilon": 0.01}


@pytest.mark.parametrize("more", [{}, {"activation": "relu", "apply_b_dec_to_input": True}])
@pytest.mark.parametrize("eps", [1e-8, 0.5])
@pytest.mark.parametrize("tied", [True, None])
def test_arenas_tied_decoder_is_normalised_at_every_use(
    more: dict[str, Any], eps: float, tied: bool | None, tmp_path: Path
) -> None:
    torch.save(ARENA, tmp_path / "sae.pt")
    config = {**TOY, "weight_normalize_eps": eps, **({} if tied is None else {"tied_weights": tied}), **more}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    W, b_enc, b_dec = (ARENA[name][0] for name in ("W_enc", "b_enc", "b_dec"))
    rows = W.T / (W.T.norm(dim=1, keepdim=True) + eps)
    check(tmp_path / "sae.pt", lambda x: ((x - b_dec) @ W + b_enc).relu() @ rows + b_dec)


def test_a_tied_decoder_of_nobody_in_particular_is_the_encoder(tmp_path: Path) -> None:
    torch.save({name: value[0] for name, value in ARENA.items()}, tmp_path / "sae.pt")
    W, b_enc, b_dec = (ARENA[name][0] for name in ("W_enc", "b_enc", "b_dec"))
    said = {"activation": "relu", "apply_b_dec_to_input": True, "tied_weights": True}
    check(tmp_path / "sae.pt", lambda x: ((x - b_dec) @ W + b_enc).relu() @ W.T + b_dec, config=said)


def test_what_load_refuses_info_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {**ARENA, "_W_dec": random(1, F, D), "log_theta": random(1, F)}
    torch.save(tensors, tmp_path / "sae.pt")
    with pytest.raises(sk.FormatError, match=r"its decoder's rows are not of norm 1"):
        sk.load(tmp_path / "sae.pt")
    assert "its decoder's rows are not of norm 1" in fails(capsys, ["info", str(tmp_path / "sae.pt")])
    unit = tensors["_W_dec"] / tensors["_W_dec"].norm(dim=-1, keepdim=True)
    torch.save({**tensors, "_W_dec": unit}, tmp_path / "sae.pt")
    assert main(["info", str(tmp_path / "sae.pt")]) == 0


def one(folder: Path, name: str, tensors: dict[str, Tensor], config: str, said: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (torch.save if name.endswith(".pt") else save_file)(tensors, folder / name)
    if config:
        (folder / config).write_text(json.dumps(said))
    return folder / name


SQUARE = {"encoder.weight": random(F, D), "decoder.weight": random(D, F)}


@pytest.mark.parametrize(
    ("name", "tensors", "config", "message"),
    [
        ("model.safetensors", {**SQUARE, "pre_encoder_bias": random(D), "last_nonzero": torch.zeros(F)}, "config.json",
         r"unexpected tensors \['last_nonzero', 'pre_encoder_bias'\]"),
        ("model.safetensors", {"encoder.weight": random(2, D, F), "decoder.weight": random(2, F, D)}, "config.json",
         "a crosscoder, which reads and writes several activations"),
        ("model.safetensors", {"up.weight": random(F, D)}, "config.json",
         r"no known format has the entries \['up.weight'\]"),
        ("model.safetensors", {"W_enc_0": random(F, D), "W_dec_0": random(F, 2, D)}, "",
         "cross-layer transcoders are no single SAE"),
        ("layer_3.safetensors", {"W_enc": random(F, D), "b_enc": random(F), "W_dec": random(F, 2, D)}, "",
         "cross-layer transcoders are no single SAE"),
        ("layer_3.safetensors", {"W_dec": random(F, D)}, "", r"tensor 'W_enc' is missing; the file has \['W_dec'\]"),
        ("a.pt", {"W_enc": random(0, D), "b_enc": random(0), "W_dec": random(D, 0), "b_dec": random(D)}, "cfg.json",
         rf"tensor 'W_enc' has shape \[0, {D}\], need no dimension of size 0"),
        ("sae_weights.safetensors", {"W_E": random(D, F), "b_E": random(F), "W_D": random(F, D), "b_D": random(D)}, "",
         r"its tensors have the names of Llama Scope, need hyperparams\.json or config\.json beside them"),
        ("sae_weights.safetensors", {"W_enc": random(D, F)}, "", r"cfg\.json: there is no such file, need it beside"),
        ("sae.safetensors", {"encoder.weight": random(F, D)}, "", r"cfg\.json: there is no such file, need it beside"),
    ],
)  # fmt: skip
def test_a_refusal_names_what_is_there(
    name: str, tensors: dict[str, Tensor], config: str, message: str, tmp_path: Path
) -> None:
    path = one(tmp_path, name, tensors, config, {"activation": "topk", "k": K, "apply_b_dec_to_input": True})
    with pytest.raises(sk.FormatError, match=message) as caught:
        sk.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".sae.pt", ".safetensors", ".npz"])
def test_of_several_checkpoints_one_is_to_be_named(suffix: str, tmp_path: Path) -> None:
    many = [f"layer{i:02}{suffix}" for i in range(10)]
    for name in many:
        if suffix == ".npz":
            np.savez(tmp_path / name, W_enc=random(D, F).numpy())
        else:
            one(tmp_path, name, {"W_enc": random(F, D)}, "", {})
    listed = " or ".join(repr(name) for name in many[:8])
    with pytest.raises(sk.FormatError) as caught:
        sk.load(tmp_path)
    what = f"need one of its files of weights by name: {listed} or another of 10"
    assert str(caught.value) == f"path: got {str(tmp_path)!r}, {what}"


def test_of_several_folders_one_is_to_be_named(tmp_path: Path) -> None:
    for layer in (3, 4):
        gemma(tmp_path / f"layer_{layer}")
    (tmp_path / "figures").mkdir()
    with pytest.raises(sk.FormatError) as caught:
        sk.load(tmp_path)
    assert str(caught.value) == (
        f"path: got {str(tmp_path)!r}, need one of the checkpoints inside by name: 'layer_3' or 'layer_4'"
    )
