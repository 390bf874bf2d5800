"""Crosscoders' files, made by formula: each is what its tool computes, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk

H, D, F = 2, 3, 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


X = random(5, H, D, seed=9)
KISSANE = {"W_enc": random(H, D, F), "W_dec": random(F, H, D), "b_enc": random(F), "b_dec": random(H, D)}
FORK = {
    "encoder.weight": random(H, D, F),
    "encoder.bias": random(F),
    "decoder.weight": random(H, F, D),
    "decoder.bias": random(H, D),
}
BATCH_TOPK = {**FORK, "k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(1.2)}
LLAMA = {"W_E": random(H, D, F), "b_E": random(H, F), "W_D": random(H, F, D), "b_D": random(H, D)}
LLAMA_CONFIG = {
    "sae_type": "crosscoder", "d_model": D, "expansion_factor": F / D + 0.01,
    "hook_points": ["blocks.1.hook_mlp_out", "b"],
    "act_fn": "topk", "top_k": 2, "norm_activation": "inference", "sparsity_include_decoder_norm": True,
}  # fmt: skip


def written(folder: Path, name: str, tensors: dict[str, Any], config: dict[str, Any] | None, at: str = "") -> Path:
    file = folder / name
    (save_file if file.suffix == ".safetensors" else torch.save)(tensors, file)
    if config is not None:
        (folder / (at or "config.json")).write_text(json.dumps(config))
    return file


def linear(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """[T, F]: the sum over heads, W_enc [H, d, F]."""
    return torch.einsum("thd,hdf->tf", x, W_enc) + b_enc


@pytest.mark.parametrize(("name", "config"), [("cc_weights.pt", "cfg.json"), ("12.pt", "12_cfg.json")])
def test_kissane_and_nanda(name: str, config: str, tmp_path: Path) -> None:
    said = {
        "d_in": D,
        "dict_size": F,
        "model_name": "gemma-2-2b",
        "seq_len": 1024,
        "hook_point": "blocks.14.hook_resid_pre",
    }
    file = written(tmp_path, name, KISSANE, said, config)
    with pytest.raises(sk.FormatError, match=r"input_scale: .* which is in no file; need 2 numbers"):
        sk.load_crosscoder(file)
    scale = torch.tensor([0.5, 2.0])[:, None]
    made = sk.load_crosscoder(tmp_path, input_scale=[0.5, 2.0])
    codes = linear(X * scale, KISSANE["W_enc"], KISSANE["b_enc"]).relu()
    torch.testing.assert_close(made.encode(X)[0].to_dense(), codes)
    out = torch.einsum("tf,fhd->thd", codes, KISSANE["W_dec"]) + KISSANE["b_dec"]
    torch.testing.assert_close(made(X), out / scale)
    assert made.sites == ("blocks.14.hook_resid_pre",) * 2
    assert made.metadata is not None
    assert made.metadata.model == "gemma-2-2b"
    said.pop("hook_point")
    (tmp_path / config).write_text(json.dumps({**said, "site": "resid_post"}))
    assert sk.load_crosscoder(tmp_path, input_scale=[1, 1]).sites == tuple(
        f"blocks.{i}.hook_resid_post" for i in (0, 1)
    )
    (tmp_path / config).write_text(json.dumps({**said, "topk": 4}))
    with pytest.raises(sk.FormatError, match=r"fields that are not known here: 'topk' \(4\)"):
        sk.load_crosscoder(tmp_path, input_scale=[1, 1])
    (tmp_path / config).write_text(json.dumps({**said, "dict_size": 8}))
    with pytest.raises(sk.FormatError, match="'dict_size' is 8, but"):
        sk.load_crosscoder(tmp_path, input_scale=[1, 1])
    (tmp_path / config).unlink()
    with pytest.raises(sk.FormatError, match=r"cfg.json beside it"):
        sk.load_crosscoder(tmp_path, input_scale=[1, 1])


def fork(tensors: dict[str, Tensor], rule: str, x: Tensor, alphas: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """[T, H, F]: codes as the fork's own lines compute them."""
    f = linear(x, tensors["encoder.weight"], tensors["encoder.bias"]).relu()
    W = tensors["decoder.weight"]
    sae, cc = W.norm(dim=(0, 2)), W.norm(dim=2).sum(0)
    norms = {"CROSSCODER": cc, "SAE": sae, "MIXED": alphas[0] * sae + alphas[1] * cc, "NONE": torch.ones(F)}
    scale = W.norm(dim=2) if rule == "DECOUPLED" else norms[rule].expand(H, F)
    threshold = tensors["threshold"].reshape(-1, 1).expand(H, 1)
    return f[:, None] * (f[:, None] * scale > threshold)


@pytest.mark.parametrize(
    ("number", "rule"),
    [(None, "CROSSCODER"), (1, "CROSSCODER"), (2, "SAE"), (3, "MIXED"), (4, "NONE"), (5, "DECOUPLED")],
)
@pytest.mark.parametrize("form", ["ae.pt", "model.safetensors"])
def test_the_fork(number: int | None, rule: str, form: str, tmp_path: Path) -> None:
    tensors = dict(BATCH_TOPK)
    if number is not None:
        tensors["code_normalization_id"] = torch.tensor(number)
    if rule == "DECOUPLED":
        tensors["threshold"] = torch.tensor([0.6, 2.0])
    if form == "ae.pt":
        saved = {f"_orig_mod.{name}": value for name, value in tensors.items()}
        written(tmp_path, form, saved, {"trainer": {"dict_class": "BatchTopKCrossCoder", "k": 3, "lm_name": "g"}})
    else:
        written(tmp_path, form, tensors, {"activation_dim": D, "dict_size": F, "num_layers": H, "k": 3})
    options: dict[str, Any] = {}
    if rule == "MIXED":
        with pytest.raises(sk.FormatError, match=r"alphas: .* whose two factors are in no file"):
            sk.load_crosscoder(tmp_path)
        options["alphas"] = (0.5, 0.25)
    if number is None:
        with pytest.warns(UserWarning, match="no 'code_normalization_id'; CROSSCODER"):
            made = sk.load_crosscoder(tmp_path)
    else:
        made = sk.load_crosscoder(tmp_path, **options)
    codes = fork(tensors, rule, X, options.get("alphas", (0.0, 0.0)))
    assert 0.1 < (codes > 0).double().mean() < 0.9
    for head, one in enumerate(made.encode(X)):
        torch.testing.assert_close(one.to_dense(), codes[:, head])
    out = torch.einsum("thf,hfd->thd", codes, tensors["decoder.weight"]) + tensors["decoder.bias"]
    torch.testing.assert_close(made(X), out)
    assert made.activation == sk.BatchTopK(3.0)
    half = sk.load_crosscoder(tmp_path, dtype=torch.bfloat16, **options) if number is not None else made
    assert half.threshold is not None
    assert torch.equal(half.threshold, tensors["threshold"])


def test_alphas_in_the_config(tmp_path: Path) -> None:
    tensors = {**BATCH_TOPK, "code_normalization_id": torch.tensor(3)}
    said = {"code_normalization": "MIXED", "code_normalization_alpha_sae": 0.5, "code_normalization_alpha_cc": 0.25}
    written(tmp_path, "ae.pt", tensors, {"trainer": said})
    assert sk.load_crosscoder(tmp_path).alphas == (0.5, 0.25)
    with pytest.raises(sk.FormatError, match=r"alphas: got \(1.0, 1.0\), but .* says \(0.5, 0.25\)"):
        sk.load_crosscoder(tmp_path, alphas=(1.0, 1.0))


def test_the_forks_statistics(tmp_path: Path) -> None:
    mean, std, scale = random(H, D), random(H, D).abs(), torch.tensor([1e-3, 3.0])
    statistics = {"target_rms": torch.tensor(1.0), "activation_mean": mean, "activation_std": std}
    whole = {**BATCH_TOPK, **statistics, "activation_global_scale": scale, "code_normalization_id": torch.tensor(2)}
    written(tmp_path, "ae.pt", whole, None)
    made = sk.load_crosscoder(tmp_path)
    x = X * 100
    codes = fork(whole, "SAE", (x - mean) * scale[:, None])
    out = torch.einsum("thf,hfd->thd", codes, FORK["decoder.weight"]) + FORK["decoder.bias"]
    torch.testing.assert_close(made(x), out / (scale[:, None] + 1e-8) + mean, rtol=2e-6, atol=1e-5)
    none = {**whole, "activation_mean": mean * torch.nan, "activation_std": std * torch.nan}
    written(tmp_path, "ae.pt", none, None)
    assert sk.load_crosscoder(tmp_path).input_mean is None


@pytest.mark.parametrize(
    ("changed", "config", "told"),
    [
        ({"threshold": torch.tensor(-1.0)}, None, r"its threshold is -1.0: -1 was never set"),
        ({"threshold": None}, None, "a BatchTopK crosscoder without a 'threshold'"),
        ({"code_normalization_id": torch.tensor(6)}, None, "its code_normalization_id is 6, need one of"),
        ({"code_normalization_id": torch.tensor(5)}, None, r"tensor 'threshold' has shape \[\], .* needs \[2\]"),
        ({"code_normalization_id": torch.tensor(5), "threshold": torch.ones(2), "activation_mean": random(H, D),
          "activation_std": random(H, D), "activation_global_scale": torch.ones(H)}, None,
          "which its tool applies twice"),
        ({"activation_mean": random(H, D)}, None, "has activation_mean, but no activation_global_scale, act"),
        ({"encoder.weight": random(1, D, F)}, None, "its encoder reads some of the layers"),
        ({"extra": torch.ones(1)}, None, r"unexpected tensors \['extra'\]"),
        ({}, {"dict_class": "CrossCoder"}, "'dict_class' is 'CrossCoder', but ae.pt has a threshold"),
        ({}, {"code_normalization": "SAE"}, "'code_normalization' is 'SAE', but ae.pt has CROSSCODER"),
        ({}, {"k": 4}, "its k is 3, but its config says 4"),
        ({}, {"dict_size": 9}, "'dict_size' is 9, but ae.pt has 7"),
        ({}, {"rescale": True}, r"not known here: 'rescale' \(True\)"),
    ],
)  # fmt: skip
def test_what_the_fork_does_not_say(changed: dict[str, Any], config: Any, told: str, tmp_path: Path) -> None:
    tensors = {**BATCH_TOPK, "code_normalization_id": torch.tensor(1), **changed}
    written(tmp_path, "ae.pt", {name: value for name, value in tensors.items() if value is not None}, config)
    with pytest.raises(sk.FormatError, match=told):
        sk.load_crosscoder(tmp_path)


def test_a_plain_crosscoder_of_the_fork_is_relu_whatever_weighs_its_loss(tmp_path: Path) -> None:
    written(tmp_path, "ae.pt", {**FORK, "code_normalization_id": torch.tensor(5)}, {"dict_class": "CrossCoder"})
    made = sk.load_crosscoder(tmp_path)
    codes = linear(X, FORK["encoder.weight"], FORK["encoder.bias"]).relu()
    torch.testing.assert_close(made.encode(X)[0].to_dense(), codes)
    with pytest.raises(sk.FormatError, match="alphas: got"):
        sk.load_crosscoder(tmp_path, alphas=(1.0, 0.1))
    with pytest.raises(sk.FormatError, match="input_scale: got"):
        sk.load_crosscoder(tmp_path, input_scale=[1.0, 1.0])


@pytest.mark.parametrize("act", ["topk", "jumprelu", "relu"])
@pytest.mark.parametrize("norm", ["inference", "dataset-wise"])
def test_llamascopium(act: str, norm: str, tmp_path: Path) -> None:
    log = {"activation_function.log_jumprelu_threshold": random(F)} if act == "jumprelu" else {}
    means = {
        f"dataset_average_activation_norm.{p}": torch.tensor(2.0 + i) for i, p in enumerate(LLAMA_CONFIG["hook_points"])
    }
    config = {**LLAMA_CONFIG, "act_fn": act, "norm_activation": norm}
    written(tmp_path, "sae_weights.safetensors", {**LLAMA, **log, **means}, config)
    made = sk.load_crosscoder(tmp_path)
    scale = D**0.5 / torch.tensor([[2.0], [3.0]]) if norm == "dataset-wise" else torch.ones(2, 1)
    h = linear(X * scale, LLAMA["W_E"], LLAMA["b_E"].sum(0))[:, None]
    n = LLAMA["W_D"].norm(dim=-1)
    scores = (h * n).relu()
    if act == "topk":
        kept = torch.zeros_like(scores).scatter(-1, scores.topk(2).indices, 1)
    else:
        kept = (scores > (log["activation_function.log_jumprelu_threshold"].exp() if log else 0)).float()
    codes = h.relu() * kept
    for head, one in enumerate(made.encode(X)):
        torch.testing.assert_close(one.to_dense(), codes[:, head])
    torch.testing.assert_close(made(X), (torch.einsum("thf,hfd->thd", codes, LLAMA["W_D"]) + LLAMA["b_D"]) / scale)
    assert made.sites == tuple(LLAMA_CONFIG["hook_points"])
    torch.save({"sae": {**LLAMA, **log, **means}, "version": "2"}, tmp_path / "sae_weights.pt")
    again = sk.load_crosscoder(tmp_path / "sae_weights.pt")
    assert torch.equal(again(X), made(X))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sae_type": "clt"}, "got sae_type 'clt' beside it, need one of sae_type \"crosscoder\""),
        ({"act_fn": "batchtopk"}, "'act_fn' is 'batchtopk', need relu, topk or jumprelu"),
        ({"norm_activation": "token-wise"}, "'norm_activation' is 'token-wise', need dataset-wise or inference"),
        ({"norm_activation": "dataset-wise"}, "input_scale: .* their mean norms are in no file; need 2 numbers"),
        ({"hook_points": ["one"]}, "'hook_points' is .*, need 2 names"),
        ({"sparsity_include_decoder_norm": False}, "'sparsity_include_decoder_norm' is false"),
        ({"expansion_factor": 3}, "'expansion_factor' is 3 for 3 dimensions, but there are 7"),
        ({"d_model": 4}, "'d_model' is 4, but sae_weights.safetensors has 3"),
        ({"act_fn": "jumprelu"}, "log_jumprelu_threshold' is missing"),
        ({"top_k": 99}, "got k = 99, need at most n_latents = 7"),
        ({"glu": True}, r"not known here: 'glu' \(True\)"),
    ],
)
def test_what_llamascopium_does_not_say(changed: dict[str, Any], told: str, tmp_path: Path) -> None:
    written(tmp_path, "sae_weights.safetensors", LLAMA, {**LLAMA_CONFIG, **changed})
    with pytest.raises(sk.FormatError, match=told):
        sk.load_crosscoder(tmp_path)


def test_what_is_no_crosscoder(tmp_path: Path) -> None:
    with pytest.raises(sk.FormatError, match=r"need one file of weights .*, got none"):
        sk.load_crosscoder(tmp_path)
    written(tmp_path, "a.pt", {"W_enc": random(D, F), "W_dec": random(F, D)}, None)
    with pytest.raises(sk.FormatError, match=r"no known crosscoder has the entries \['W_dec', 'W_enc'\]"):
        sk.load_crosscoder(tmp_path)
    (tmp_path / "b.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(sk.FormatError, match=r"got a.pt, b.pt; name the file"):
        sk.load_crosscoder(tmp_path)
    with pytest.raises(sk.FormatError, match=r"b.pt: not a readable torch file"):
        sk.load_crosscoder(tmp_path / "b.pt")
    with pytest.raises(TypeError, match="dtype: got"):
        sk.load_crosscoder(tmp_path, dtype=torch.int8)
    with pytest.raises(ValueError, match="revision: got 'main'"):
        sk.load_crosscoder(tmp_path, revision="main")
