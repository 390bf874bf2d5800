"""dictionary_learning's classes, told apart by their tensors: made here, read by formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import saekernels as sk
from zoo import LINEAR, D, F, K, check, dictionary, jump, out, pre, random, selected, topk


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
