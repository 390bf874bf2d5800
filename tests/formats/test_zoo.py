"""Files of the other formats, made here and read by formula: Gemma and Llama Scope, OpenAI, dictionary_learning, ..."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk
from saekernels.formats import hub
from zoo import LINEAR, OUT, D, F, K, check, dictionary, gemma, jump, llama, openai, out, pre, random, selected, topk


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
    config = {"expansion_factor": 4, "norm_activation": "inference", "act_fn": "jumprelu"}
    w = llama(tmp_path / "a", config, log_jumprelu_threshold=log)
    check(tmp_path / "a", lambda x: jump(x @ w["W_enc"].T + w["b_enc"], log.exp()) @ w["W_dec"] + w["b_dec"])
    w = llama(tmp_path / "b", {**config, "sparsity_include_decoder_norm": True}, log_jumprelu_threshold=log)
    n = w["W_dec"].norm(dim=1)
    check(
        tmp_path / "b",
        lambda x: jump((x @ w["W_enc"].T + w["b_enc"]) * n, log.exp()) / n @ w["W_dec"] + w["b_dec"],
    )


def test_llamascopium(tmp_path: Path) -> None:
    base = {"sae_type": "sae", "expansion_factor": 4, "act_fn": "topk", "top_k": K, "norm_activation": "token-wise"}
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
    config = {"expansion_factor": 4, "norm_activation": "dataset-wise", "act_fn": "relu"}
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
    llama(tmp_path, {"expansion_factor": 4, "norm_activation": "inference", "act_fn": "relu", **change}, "v2")
    with pytest.raises(sk.FormatError) as caught:
        sk.load(tmp_path)
    assert message in str(caught.value)


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
    openai(tmp_path / "7.pt", activation_state_dict={"k": K, "postact_fn": "Identity"})
    with pytest.raises(sk.FormatError, match="'postact_fn' is 'Identity'"):
        sk.load(tmp_path / "7.pt")


def test_dictionary_learning_by_tensors_not_by_what_the_config_says(tmp_path: Path) -> None:
    b = random(D, seed=9)
    wrong = {"dict_class": "AutoEncoder"}  # what an AprilUpdate trainer writes for an AutoEncoderNew
    old = dictionary(tmp_path / "old", {**LINEAR, "bias": b}, wrong)
    new = dictionary(tmp_path / "new", {**LINEAR, "decoder.bias": b}, wrong)
    check(old, lambda x: out(pre(x, b).relu(), b))
    check(new, lambda x: out(pre(x).relu(), b))
    check(new / "ae.pt", lambda x: out(pre(x).relu(), b))
    r, gate, mag = random(F, seed=1) * 0.3, random(F, seed=2) * 0.3, random(F, seed=3) * 0.3
    gated = {"encoder.weight": LINEAR["encoder.weight"], "decoder.weight": LINEAR["decoder.weight"]}
    folder = dictionary(
        tmp_path / "gated", {**gated, "r_mag": r, "gate_bias": gate, "mag_bias": mag, "decoder_bias": b}
    )

    def formula(x: Tensor) -> Tensor:
        s = (x - b) @ LINEAR["encoder.weight"].T
        return out((r.exp() * s + mag).relu() * (s + gate > 0), b)

    check(folder, formula)
    matrices = {"W_enc": random(D, F), "b_enc": random(F) * 0.2, "W_dec": random(F, D), "b_dec": b}
    theta = random(F, seed=6).abs()
    folder = dictionary(tmp_path / "jump", {**matrices, "threshold": theta})
    check(folder, lambda x: jump(x @ matrices["W_enc"] + matrices["b_enc"], theta) @ matrices["W_dec"] + b)


def test_dictionary_learning_top_k_and_its_thresholds(tmp_path: Path) -> None:
    folder, b = selected(tmp_path / "topk", "AutoEncoderTopK", 0.7)
    sae = check(folder, lambda x: out(topk(pre(x, b)), b))
    assert sae.activation == sk.TopK(K), "its threshold is not used there either"
    folder, b = selected(tmp_path / "batch", "BatchTopKSAE", 0.7)
    check(folder, lambda x: out(jump(pre(x, b), 0.7), b))
    folder, b = selected(tmp_path / "unset", "BatchTopKSAE", -1.0)
    with pytest.warns(UserWarning, match="its threshold was never set"):
        check(folder, lambda x: out(pre(x, b).relu(), b))
    folder, _ = selected(tmp_path / "nameless", None, 0.7)
    with pytest.raises(sk.FormatError, match=r"TopK and BatchTopK have the same tensors; need a config\.json"):
        sk.load(folder)
    matrices = {"W_enc": random(D, F), "b_enc": random(F) * 0.2, "W_dec": random(F, D), "b_dec": b}
    matrices |= {"k": torch.tensor(K), "threshold": torch.tensor(0.5), "group_sizes": torch.tensor([16, 24])}
    folder = dictionary(tmp_path / "nested", matrices)
    check(folder, lambda x: jump((x - b) @ matrices["W_enc"] + matrices["b_enc"], 0.5) @ matrices["W_dec"] + b)


def test_dictionary_learning_older_files_without_k(tmp_path: Path) -> None:
    b = random(D, seed=9)
    tensors = {**LINEAR, "b_dec": b}
    folder = dictionary(tmp_path / "a", tensors, {"dict_class": "AutoEncoderTopK", "k": K})
    check(folder, lambda x: out(topk(pre(x, b)), b))
    folder = dictionary(tmp_path / "b", tensors, {"dict_class": "AutoEncoderTopK"})
    check(folder, lambda x: out(topk(pre(x, b), 3), b), k=3)
    with pytest.raises(sk.FormatError, match="'k' is None"):
        sk.load(folder)
    with pytest.raises(sk.FormatError, match="k: got 4, but"):
        sk.load(tmp_path / "a", k=4)
    torch.save({"step": 3, "ae": tensors, "optimizer": {}}, tmp_path / "a" / "ae.pt")
    with pytest.raises(sk.FormatError, match="interrupted training run"):
        sk.load(tmp_path / "a")


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
    with pytest.raises(sk.FormatError, match="name the file of one layer"):
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
    with pytest.raises(sk.FormatError, match="name the file of one layer"):
        sk.load(tmp_path)


class Evil:
    """What a pickle can run: it makes that file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def test_nothing_else_than_tensors_is_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "was-here"
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists(), "an unpickler that runs it is noticed"
    marker.unlink()
    torch.save({"pre_bias": Evil(marker), "latent_bias": random(F)}, tmp_path / "a.pt")
    with pytest.raises(sk.FormatError, match="which are never unpickled"):
        sk.load(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(sk.FormatError, match=r"b\.pt"):
        sk.load(tmp_path / "b.pt")
    np.savez(tmp_path / "params.npz", W_enc=np.array([Evil(marker)], dtype=object))
    with pytest.raises(sk.FormatError, match="not a numpy archive"):
        sk.load(tmp_path / "params.npz")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["npz", "pt", "safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "noise", "flipped", "short tensor"])
def test_damaged_files_give_one_clear_error(kind: str, damage: str, tmp_path: Path) -> None:
    if kind == "pt":
        path = tmp_path / "ae.pt"
        torch.save({**LINEAR, "bias": random(D)}, path)
    else:
        gemma(tmp_path, suffix=kind)
        path = tmp_path / f"params.{kind}"
    whole = path.read_bytes()
    if damage == "short tensor":
        if kind == "pt":
            torch.save({**LINEAR, "bias": random(D - 1)}, path)
        else:
            gemma(tmp_path, suffix=kind, threshold=random(F - 1))
    else:
        at = len(whole) // 3
        path.write_bytes({
            "empty": b"", "half": whole[: len(whole) // 2], "noise": bytes(range(256)) * 40,
            "flipped": bytes([whole[0] ^ 0xFF]) + whole[1:at] + bytes(64) + whole[at + 64 :],
        }[damage])  # fmt: skip
    with pytest.raises(sk.FormatError) as caught:
        sk.load(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_do_not_belong(tmp_path: Path) -> None:
    gemma(tmp_path)
    with pytest.raises(sk.FormatError, match=r"k: got 3, but .* says itself"):
        sk.load(tmp_path, k=3)
    with pytest.raises(sk.FormatError, match="input_scale: got 2"):
        sk.load(tmp_path, input_scale=2)
    for k in (0, True, 2.5):
        with pytest.raises(ValueError, match="k: got"):
            sk.load(tmp_path, k=k)  # type: ignore[arg-type]
    torch.save({"something": random(3)}, tmp_path / "x.pt")
    with pytest.raises(sk.FormatError, match="no known format has the entries"):
        sk.load(tmp_path / "x.pt")
    torch.save([random(3)], tmp_path / "x.pt")
    with pytest.raises(sk.FormatError, match="need a dictionary of tensors by name"):
        sk.load(tmp_path / "x.pt")


def test_every_format_converts_to_saelens(tmp_path: Path) -> None:
    gemma(tmp_path / "gemma", OUT)
    openai(tmp_path / "7.pt")
    llama(tmp_path / "llama", {"d_sae": F, "jump_relu_threshold": 0.4, "dataset_average_activation_norm": {"in": 9.0}})
    folder, _ = selected(tmp_path / "batch", "BatchTopKSAE", 0.7)
    x = random(9, D, seed=5)
    for number, source in enumerate((tmp_path / "gemma", tmp_path / "7.pt", tmp_path / "llama", folder)):
        sae = sk.load(source)
        sk.save(sae, tmp_path / f"out{number}")
        torch.testing.assert_close(sk.load(tmp_path / f"out{number}")(x), sae(x), rtol=1e-4, atol=1e-4)


def test_hub_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[Any] = []
    root = tmp_path / "snapshot"
    w = gemma(root / "layer_3" / "width_16k")

    def download(repo: str, revision: str | None = None, allow_patterns: Any = None) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(root)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    check(
        "google/gemma-scope-2b-pt-res/layer_3/width_16k",
        lambda x: jump(x @ w["W_enc"] + w["b_enc"], w["threshold"]) @ w["W_dec"] + w["b_dec"],
        revision="abc",
    )
    assert asked == [("google/gemma-scope-2b-pt-res", "abc", ["layer_3/width_16k", "layer_3/width_16k/*"])]
    with pytest.raises(FileNotFoundError, match="has no 'layer_9'"):
        sk.load("google/gemma-scope-2b-pt-res/layer_9")
    for name in ("missing", "./a/b", "/no/such", "a/b/../../c", "~/a/b"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            hub.fetch(name)
    assert len(asked) == 2

    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"gives nothing by that id: no network$"):
        sk.load("a/b")
