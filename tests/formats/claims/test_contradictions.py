"""Configs that speak of another function than the tensors, or of two: refused with both names, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk
from zoo import LINEAR, D, F, K, check, dictionary, llama, random, topk

MATRICES = {"W_enc": random(D, F), "b_enc": random(F) * 0.2, "W_dec": random(F, D), "b_dec": random(D, seed=9)}
NESTED = {**MATRICES, "k": torch.tensor(K), "threshold": torch.tensor(0.4), "group_sizes": torch.tensor([16, 24])}
KINDS: dict[str, dict[str, Tensor]] = {
    "AutoEncoder": {**LINEAR, "bias": MATRICES["b_dec"]},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": MATRICES["b_dec"]},
    "JumpReluAutoEncoder": {**MATRICES, "threshold": random(F).abs()},
    "GatedAutoEncoder": {**{name: LINEAR[name] for name in ("encoder.weight", "decoder.weight")}, "r_mag": random(F),
                         "gate_bias": random(F), "mag_bias": random(F), "decoder_bias": MATRICES["b_dec"]},
    "MatryoshkaBatchTopKSAE": NESTED,
    "BatchTopKSAE": {**LINEAR, "b_dec": MATRICES["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(0.4)},
}  # fmt: skip
# Classes that share their tensors, or what an older trainer wrote in the other's place.
ALIKE = {"AutoEncoderNew": ("AutoEncoder",), "BatchTopKSAE": ("AutoEncoderTopK",)}


@pytest.mark.parametrize("own", KINDS)
@pytest.mark.parametrize("named", [*KINDS, "AutoEncoderTopK", "GOGS2"])
def test_a_class_that_the_tensors_are_not_of(own: str, named: str, tmp_path: Path) -> None:
    folder = dictionary(tmp_path / "ae", KINDS[own], {"dict_class": named})
    if named == own or named in ALIKE.get(own, ()):
        assert sk.load(folder).n_latents == F
        return
    both = rf"'dict_class' is '{named}', (but the tensors of ae\.pt are of {own}|need one of )"
    if own == "BatchTopKSAE":
        both = rf"'dict_class' is '{named}', (but the tensors of ae\.pt are of AutoEncoderTopK or {own}|need one of )"
    with pytest.raises(sk.FormatError, match=both):
        sk.load(folder)


@pytest.mark.parametrize("own", ["AutoEncoder", "AutoEncoderNew", "JumpReluAutoEncoder", "GatedAutoEncoder"])
def test_a_k_where_there_is_none(own: str, tmp_path: Path) -> None:
    folder = dictionary(tmp_path / "ae", KINDS[own], {"dict_class": own, "k": K})
    with pytest.raises(sk.FormatError, match=rf"'k': got {K}, but .*ae\.pt has no k: its tensors are of {own}"):
        sk.load(folder)
    with pytest.raises(sk.FormatError, match=r"^k: got 3, but .*ae\.pt has no k"):
        sk.load(dictionary(tmp_path / "other", KINDS[own]), k=3)


@pytest.mark.parametrize("named", ["BatchTopKSAE", "AutoEncoderTopK", "MatryoshkaBatchTopKSAE"])
def test_two_values_of_k(named: str, tmp_path: Path) -> None:
    tensors = KINDS.get(named, KINDS["BatchTopKSAE"])
    folder = dictionary(tmp_path / "ae", tensors, {"dict_class": named, "k": K + 1})
    with pytest.raises(sk.FormatError, match=rf"its k is {K}, but its config\.json says {K + 1}"):
        sk.load(folder)


def test_a_buffer_of_another_width(tmp_path: Path) -> None:
    folder = dictionary(tmp_path / "ae", KINDS["AutoEncoder"], {"dict_class": "AutoEncoder"})
    config = {"trainer": {"dict_class": "AutoEncoder"}, "buffer": {"d_submodule": D + 1}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(sk.FormatError, match=f"'d_submodule' is {D + 1}, but ae.pt has {D}"):
        sk.load(folder)


LOGS = "activation_function.log_jumprelu_threshold"


@pytest.mark.parametrize(
    ("config", "extra", "message"),
    [
        ({"act_fn": "relu"}, {LOGS: random(F)}, f"'act_fn' is 'relu', but sae_weights.safetensors has '{LOGS}'"),
        ({"act_fn": "topk", "top_k": K}, {LOGS: random(F)}, "'act_fn' is 'topk', but sae_weights.safetensors has"),
        ({"act_fn": "relu", "expansion_factor": 8}, {}, f"'expansion_factor' is 8 for {D} dimensions, but .* has {F} "),
        ({"act_fn": "relu", "expansion_factor": 3.2}, {}, "'expansion_factor' is 3.2 for "),
    ],
)  # fmt: skip
def test_llamascopiums_config_and_tensors(
    config: dict[str, Any], extra: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    llama(tmp_path, {"norm_activation": "inference", **config}, "v2", **extra)
    with pytest.raises(sk.FormatError, match=message):
        sk.load(tmp_path)


@pytest.mark.parametrize("factor", [F / D, 3.3334])
def test_an_expansion_factor_is_cut_to_whole_latents(factor: float, tmp_path: Path) -> None:
    w = llama(tmp_path, {"norm_activation": "inference", "act_fn": "relu", "expansion_factor": factor}, "v2")
    check(tmp_path, lambda x: (x @ w["W_enc"].T + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"])


def plain(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    torch.save(tensors, folder / "sae.pt")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder / "sae.pt"


def test_a_threshold_that_topk_does_not_use_is_told(tmp_path: Path) -> None:
    w = MATRICES
    tensors = {**w, "threshold": torch.tensor(0.4)}
    path = plain(tmp_path, tensors, activation="topk", k=K, apply_b_dec_to_input=True)
    with pytest.warns(UserWarning, match=r"sae\.pt: its 'threshold' is not used: cfg\.json says 'topk'"):
        check(path, lambda x: topk((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "topk", "activation_fn": "relu"}, "'activation' is 'topk' and 'activation_fn' is 'relu'"),
        ({"activation": "relu", "activation_fn_str": "topk"}, "'activation_fn_str' is 'topk', need one"),
        ({"sae_type": "topk", "architecture": "jumprelu"}, "'sae_type' is 'topk' and 'architecture' is 'jumprelu'"),
    ],
)  # fmt: skip
def test_two_names_of_an_activation(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(sk.FormatError, match=message):
        sk.load(plain(tmp_path, MATRICES, apply_b_dec_to_input=True, **config))
    path = plain(tmp_path, MATRICES, activation="relu", activation_fn="ReLU", apply_b_dec_to_input=False)
    check(path, lambda x: (x @ MATRICES["W_enc"] + MATRICES["b_enc"]).relu() @ MATRICES["W_dec"] + MATRICES["b_dec"])


def test_a_bias_that_is_to_be_subtracted_and_is_not_there(tmp_path: Path) -> None:
    without = {name: value for name, value in MATRICES.items() if name != "b_dec"}
    with pytest.raises(sk.FormatError, match=r"'apply_b_dec_to_input' is true, but sae\.pt has no 'b_dec'"):
        sk.load(plain(tmp_path, without, activation="relu", apply_b_dec_to_input=True))
    path = plain(tmp_path, without, activation="relu", apply_b_dec_to_input=False)
    check(path, lambda x: (x @ MATRICES["W_enc"] + MATRICES["b_enc"]).relu() @ MATRICES["W_dec"])
    both = {**MATRICES, "b_dec_out": random(D, seed=4)}
    with pytest.raises(sk.FormatError, match="'apply_b_dec_to_input' is false, but the file has a b_dec_out beside"):
        sk.load(plain(tmp_path, both, activation="relu", apply_b_dec_to_input=False))


def test_the_class_of_older_matryoshkas_is_known(tmp_path: Path) -> None:
    folder = dictionary(tmp_path / "ae", NESTED, {"dict_class": "MatroyshkaBatchTopKSAE", "k": K})
    w = MATRICES
    z = lambda x: (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]  # noqa: E731
    check(folder, lambda x: z(x).relu() * (z(x) > 0.4) @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("activation: topk\nactivation_fn: relu\n", "'activation' is 'topk' and 'activation_fn' is 'relu', need one"),
        ("activation: relu\nk: 5\n", r"it gives 'k' \(5\) but is 'relu', which has none"),
    ],
)
def test_circuit_tracers_config_and_itself(config: str, message: str, tmp_path: Path) -> None:
    rows = {**MATRICES, "W_enc": MATRICES["W_enc"].T.contiguous()}
    save_file(rows, tmp_path / "layer_3.safetensors")
    (tmp_path / "config.yaml").write_text(f"model_kind: transcoder_set\n{config}")
    with pytest.raises(sk.FormatError, match=message):
        sk.load(tmp_path)
    (tmp_path / "config.yaml").write_text("model_kind: transcoder_set\nactivation: relu\nactivation_fn: ReLU\n")
    check(
        tmp_path, lambda x: (x @ MATRICES["W_enc"] + MATRICES["b_enc"]).relu() @ MATRICES["W_dec"] + MATRICES["b_dec"]
    )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"k": torch.tensor(K), "threshold": random(F).abs()}, r"unexpected tensors \['threshold'\] for TopK"),
        ({"r_mag": random(F)}, r"unexpected tensors \['r_mag'\]"),
    ],
)
def test_tensors_of_two_activations(extra: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    rows = {**MATRICES, "W_enc": MATRICES["W_enc"].T.contiguous()}
    save_file({**rows, **extra}, tmp_path / "layer_3.safetensors")
    with pytest.raises(sk.FormatError, match=message):
        sk.load(tmp_path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"r_mag": random(F)}, r"unexpected tensors \['r_mag'\] for ReLU"),
        ({"b_gate": random(F), "b_mag": random(F), "r_mag": random(F), "threshold": random(F)}, "threshold"),
        ({"b_gate": random(F)}, r"missing tensors \['b_mag', 'r_mag'\] for Gated"),
    ],
)
def test_plain_tensors_of_two_activations(extra: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    gated = "b_gate" in extra
    tensors = {name: value for name, value in MATRICES.items() if not gated or name != "b_enc"}
    config = {"activation": "gated" if gated else "relu", "apply_b_dec_to_input": True}
    with pytest.raises(sk.FormatError, match=message):
        sk.load(plain(tmp_path, {**tensors, **extra}, **config))
