"""Plain state dicts with [d, F] matrices: made here as programs save them, read by their formulas, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk
from plain_tensors import WRITERS, W, pre, relu, top
from zoo import OUT, D, F, K, check, jump, random, topk

NANDA = {"seed": 49, "l1_coeff": 3e-4, "dict_mult": 8, "enc_dtype": "fp32", "model_name": "gelu-1l", "d_mlp": D}
BUSSMANN = {"act_size": D, "dict_size": F, "activation": "relu", "top_k": K, "input_unit_norm": False,
            "tied_weights": False, "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre"}  # fmt: skip


def top_without_b_enc(x: Tensor) -> Tensor:
    return topk(pre(x) - W["b_enc"]) @ W["W_dec"] + W["b_dec"]


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("beside", ["sae_cfg.json", "sae.json", "cfg.json", "config.json"])
def test_a_config_beside_the_file_says_the_maths(suffix: str, beside: str, tmp_path: Path) -> None:
    path = tmp_path / f"sae{suffix}"
    WRITERS[suffix](W, path)
    (tmp_path / beside).write_text(json.dumps({"activation": "relu", "apply_b_dec_to_input": False}))
    check(path, lambda x: relu(x, shift=False))
    check(tmp_path, lambda x: relu(x, shift=False))
    (tmp_path / beside).write_text(json.dumps({"activation": "topk", "k": K, "apply_b_dec_to_input": True}))
    check(path, top)
    (tmp_path / beside).write_text(json.dumps({"activation": "relu", "k": K, "apply_b_dec_to_input": True}))
    with pytest.raises(sk.FormatError, match=r"it gives a k, but is of 'relu', which has none"):
        sk.load(path)
    (tmp_path / beside).write_text(json.dumps({"activation": "gelu", "apply_b_dec_to_input": True}))
    with pytest.raises(sk.FormatError, match="'activation' is 'gelu', need one of"):
        sk.load(path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_nobody_says_is_asked_for(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"sae{suffix}"
    WRITERS[suffix](W, path)
    with pytest.raises(sk.FormatError) as caught:
        sk.load(path)
    assert str(caught.value) == (
        f"{path}: no file says what is selected ('activation': 'relu', or 'topk' with 'k') and whether b_dec is taken "
        "from the input ('apply_b_dec_to_input': true or false); say it in a cfg.json beside it, by "
        "config=..., or, where a known tool wrote it, by format=..."
    )
    check(path, relu, config={"activation": "relu", "apply_b_dec_to_input": True})
    check(path, lambda x: top(x, shift=False), config={"apply_b_dec_to_input": False}, k=K)
    with pytest.raises(sk.FormatError, match="no file says whether b_dec is taken from the input"):
        sk.load(path, k=K)
    with pytest.raises(sk.FormatError, match=r"k: got 5, but .* is 'relu', which has none"):
        sk.load(path, config={"activation": "relu", "apply_b_dec_to_input": True}, k=K)
    with pytest.raises(TypeError, match="config: got 3, need a mapping"):
        sk.load(path, config=3)  # type: ignore[arg-type]
    WRITERS[suffix]({**W, "b_dec": torch.zeros(D)}, path)  # then it makes no difference
    zero = sk.load(path, config={"activation": "relu"})
    x = random(9, D, seed=5)
    torch.testing.assert_close(
        zero(x).detach(), (x @ W["W_enc"] + W["b_enc"]).relu() @ W["W_dec"], rtol=2e-5, atol=2e-5
    )


def test_neel_nandas_and_bussmanns_configs_are_known(tmp_path: Path) -> None:
    torch.save(W, tmp_path / "25.pt")
    (tmp_path / "25_cfg.json").write_text(json.dumps(NANDA))
    assert check(tmp_path / "25.pt", relu).metadata.model == "gelu-1l"
    folder = tmp_path / "gpt2-small_blocks.8.hook_resid_pre"
    folder.mkdir()
    for kind, formula in (("vanilla", relu), ("topk", top_without_b_enc)):
        # His TopK has a b_enc that it does not add.
        own = {**W, "b_enc": torch.zeros(F)} if kind == "topk" else W
        torch.save({**own, "num_batches_not_active": torch.zeros(F)}, folder / "sae.pt")
        (folder / "config.json").write_text(json.dumps({**BUSSMANN, "sae_type": kind}))
        for path in (folder, folder / "sae.pt"):
            sae = check(path, formula)
        assert sae.metadata.sites == ("blocks.8.hook_resid_pre",)
        assert sae.metadata.ignored == ()
    for changes, message in [
        ({"sae_type": "batchtopk"}, "BatchTopK selects over a whole batch, need its tensor 'threshold'"),
        ({"sae_type": "topk", "input_unit_norm": "layer"}, "'input_unit_norm' is 'layer', need true or false"),
        ({"sae_type": "topk", "activation": "softplus"}, "'activation' is 'softplus', need one of"),
        ({"sae_type": "topk", "dict_size": F + 1}, f"'dict_size' is {F + 1}, but sae.pt has {F}"),
        ({"sae_type": "jumprelu", "apply_b_dec_to_input": True}, "it says 'jumprelu', but sae.pt has no 'threshold'"),
    ]:
        (folder / "config.json").write_text(json.dumps({**BUSSMANN, **changes}))
        with pytest.raises(sk.FormatError, match=message):
            sk.load(folder)
    torch.save(W, folder / "sae.pt")
    (folder / "config.json").write_text(json.dumps({**BUSSMANN, "sae_type": "topk"}))
    with pytest.raises(sk.FormatError, match="b_enc is not 0, which the tool of its config does not add for 'topk'"):
        sk.load(folder)
    torch.save({**W, "b_enc": torch.zeros(F), "threshold": torch.tensor(0.4)}, folder / "sae.pt")
    (folder / "config.json").write_text(json.dumps({**BUSSMANN, "sae_type": "batchtopk"}))
    check(folder, lambda x: jump(pre(x) - W["b_enc"], 0.4) @ W["W_dec"] + W["b_dec"])
    torch.save({**W, "jumprelu.log_threshold": random(F, seed=3)}, folder / "sae.pt")
    theta = random(F, seed=3).exp()
    for reads_b_dec in (None, True, False):
        said = {} if reads_b_dec is None else {"apply_b_dec_to_input": reads_b_dec}
        (folder / "config.json").write_text(json.dumps({**BUSSMANN, "sae_type": "jumprelu", **said}))
        if reads_b_dec is None:  # which his callers say at every call
            with pytest.raises(sk.FormatError, match="no file says whether b_dec is taken from the input"):
                sk.load(folder)
            continue
        shift = 0 if reads_b_dec else W["b_dec"] @ W["W_enc"]
        check(folder, lambda x, shift=shift: jump(pre(x) + shift, theta) @ W["W_dec"] + W["b_dec"])


def test_bussmanns_inputs_of_unit_norm(tmp_path: Path) -> None:
    torch.save({**W, "b_enc": torch.zeros(F)}, tmp_path / "sae.pt")
    config = {**BUSSMANN, "sae_type": "topk", "input_unit_norm": True}
    (tmp_path / "config.json").write_text(json.dumps(config))

    def formula(x: Tensor) -> Tensor:
        mean, centred = x.mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)
        std = centred.std(-1, keepdim=True)
        return top_without_b_enc(centred / (std + 1e-5)) * std + mean

    check(tmp_path, formula)
    with pytest.raises(sk.FormatError, match=r"input_scale: got 2\.0, but .* normalises every input by itself"):
        sk.load(tmp_path, input_scale=2.0)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated", "tied"])
def test_arenas_toy_sae(kind: str, tmp_path: Path) -> None:
    """One instance of ToySAE: its decoder's rows are normalised at every use, its toy model lies in the file too."""
    toy = {"model.W": random(1, D, 50), "model.b_final": random(1, 50)}
    w = {"W_enc": W["W_enc"], "_W_dec": W["W_dec"], "b_enc": W["b_enc"], "b_dec": W["b_dec"]}
    if kind == "jumprelu":
        w["log_theta"] = random(F, seed=3)
    if kind == "gated":
        w["W_gate"] = w.pop("W_enc")
        del w["b_enc"]
        w |= {"b_gate": random(F), "r_mag": random(F, seed=2), "b_mag": random(F, seed=1)}
    if kind == "tied":
        del w["_W_dec"]
    rows = W["W_enc"].T if kind == "tied" else W["W_dec"]
    decoder = rows / (rows.norm(dim=1, keepdim=True) + 1e-8)
    if kind in ("jumprelu", "gated"):  # whose classes differ in whether they normalise
        torch.save(w, tmp_path / "toy.pt")
        with pytest.raises(sk.FormatError, match=r"rows are not of norm 1, .*; save the rows that are used as W_dec"):
            sk.load(tmp_path / "toy.pt")
        w["_W_dec"] = decoder

    def formula(x: Tensor) -> Tensor:
        s = (x - W["b_dec"]) @ W["W_enc"]
        if kind == "gated":
            z = (s + w["b_gate"] > 0) * (w["r_mag"].exp() * s + w["b_mag"]).relu()
        else:
            z = (s + W["b_enc"]).relu() if kind != "jumprelu" else jump(s + W["b_enc"], w["log_theta"].exp())
        return z @ decoder + W["b_dec"]

    one = {**toy, **{name: value[None] for name, value in w.items()}}
    torch.save(one, tmp_path / "toy.pt")
    check(tmp_path / "toy.pt", formula)
    torch.save({f"module.{name}": value for name, value in one.items()}, tmp_path / "toy.pt")
    check(tmp_path / "toy.pt", formula)
    many = {name: value.expand(3, *value.shape[1:]).clone() for name, value in one.items()}
    torch.save(many, tmp_path / "toy.pt")
    with pytest.raises(sk.FormatError, match=r"3 SAEs in one file .*, need one; keep instance i with"):
        sk.load(tmp_path / "toy.pt")
    torch.save({name: value[1:2] for name, value in many.items()}, tmp_path / "toy.pt")
    check(tmp_path / "toy.pt", formula)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w, cfg: {"state_dict": w, "cfg": cfg},
        lambda w, cfg: {**w, "cfg": cfg},
        lambda w, cfg: {"model_state_dict": w, "config": cfg, "optimizer_state_dict": {"state": {}}, "step": 3},
        lambda w, cfg: {"sae": {f"module._orig_mod.{n}": v for n, v in w.items()}, "cfg": cfg},
        lambda w, cfg: {"state_dict": {f"autoencoder.{n}": v for n, v in w.items()}, "cfg": cfg},
    ],
)
def test_a_config_inside_the_file(wrap: Any, tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    torch.save(wrap(W, {"k": K, "activation": "topk", "apply_b_dec_to_input": True, "odd": 7}), path)
    with pytest.warns(UserWarning, match="not known here were not used: 'odd'"):
        check(path, top)
    torch.save(wrap(W, NANDA), path)
    check(path, relu)
    (tmp_path / "cfg.json").write_text(json.dumps({"l1_coeff": 5}))
    with pytest.raises(sk.FormatError, match=r"cfg\.json: 'l1_coeff' is 5, but elsewhere 0\.0003"):
        sk.load(path)


def test_either_layout_where_a_bias_tells(tmp_path: Path) -> None:
    path, said = tmp_path / "sae.pt", {"activation": "relu", "apply_b_dec_to_input": True}
    for encoder in (W["W_enc"], W["W_enc"].T.contiguous()):
        for decoder in (W["W_dec"], W["W_dec"].T.contiguous()):
            torch.save({**W, "W_enc": encoder, "W_dec": decoder, "b_extra": torch.zeros(1)}, path)
            with pytest.raises(sk.FormatError, match="unexpected tensors"):
                sk.load(path, config=said)
            torch.save({**W, "W_enc": encoder, "W_dec": decoder, "num_batches_not_active": torch.zeros(F)}, path)
            check(path, relu, config=said)
    torch.save({"W_enc": W["W_enc"], "W_dec": W["W_dec"], "b_dec": W["b_dec"]}, path)  # b_dec tells too
    check(path, lambda x: ((x - W["b_dec"]) @ W["W_enc"]).relu() @ W["W_dec"] + W["b_dec"], config=said)
    linear = {"encoder.weight": W["W_enc"].T.contiguous(), "encoder.bias": W["b_enc"],
              "decoder.weight": W["W_dec"].T.contiguous(), "decoder.bias": W["b_dec"]}  # fmt: skip
    torch.save(linear, path)
    check(path, relu, config=said)


def test_transcoders(tmp_path: Path) -> None:
    w = {**W, "W_dec": random(F, OUT), "b_dec": random(OUT)}
    torch.save(w, tmp_path / "sae.pt")
    said = {"activation": "relu"}

    def formula(x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return ((x - shift) @ w["W_enc"] + w["b_enc"]).relu() @ w["W_dec"] + random(OUT)

    check(tmp_path / "sae.pt", formula, config=said)
    with pytest.raises(sk.FormatError, match="'apply_b_dec_to_input' is true, need equal widths"):
        sk.load(tmp_path / "sae.pt", config={**said, "apply_b_dec_to_input": True})
    torch.save({**w, "b_dec": W["b_dec"], "b_dec_out": random(OUT)}, tmp_path / "sae.pt")
    check(tmp_path / "sae.pt", lambda x: formula(x, W["b_dec"]), config=said)
