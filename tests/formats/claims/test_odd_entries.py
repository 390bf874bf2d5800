"""Entries of files that are no dense tensors of numbers: exact where they can be tensors, else refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import saekernels as sk
from cli import fails
from saekernels.cli import main
from zoo import LINEAR, D, F, K, check, dictionary, jump, llama, out, pre, random

W = {"W_enc": random(D, F), "b_enc": random(F) * 0.2, "W_dec": random(F, D), "b_dec": random(D, seed=9)}
SAID = {"activation": "relu", "apply_b_dec_to_input": True}


def read(x: torch.Tensor) -> torch.Tensor:
    return ((x - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu() @ W["W_dec"] + W["b_dec"]


@pytest.mark.parametrize("names", [["b_dec"], ["b_enc"], ["b_enc", "b_dec"], ["W_enc", "W_dec", "b_enc", "b_dec"]])
def test_lists_of_numbers_are_tensors(names: list[str], tmp_path: Path) -> None:
    torch.save({**W, **{name: W[name].tolist() for name in names}}, tmp_path / "sae.pt")
    sae = check(tmp_path / "sae.pt", read, config=SAID, format="state dict")
    assert torch.equal(sae.b_dec, W["b_dec"])
    assert sae.b_dec.dtype == torch.float32


def test_numbers_are_tensors(tmp_path: Path) -> None:
    b = W["b_dec"]
    folder = dictionary(
        tmp_path / "ae", {**LINEAR, "b_dec": b, "k": K, "threshold": 0.4}, {"dict_class": "BatchTopKSAE"}
    )
    sae = check(folder, lambda x: out(jump(pre(x, b), 0.4), b))
    assert sae.activation == sk.BatchTopK(K)
    torch.save({**W, "threshold": 0.4}, tmp_path / "sae.pt")
    said = {"activation": "batchtopk", "apply_b_dec_to_input": True}
    z = lambda x: (x - b) @ W["W_enc"] + W["b_enc"]  # noqa: E731
    check(tmp_path / "sae.pt", lambda x: jump(z(x), 0.4) @ W["W_dec"] + b, config=said)
    w = llama(tmp_path / "llama", {"norm_activation": "inference", "act_fn": "relu"}, "v2")
    named = {"W_E": w["W_enc"].T, "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"].tolist()}
    (tmp_path / "llama" / "sae_weights.safetensors").unlink()
    torch.save({"sae": named}, tmp_path / "llama" / "sae_weights.pt")
    check(tmp_path / "llama", lambda x: (x @ w["W_enc"].T + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("value", ["zeros", {"of": 1}, [[1.0], [1.0, 2.0]], True, ["a"]])
def test_what_is_no_tensor_is_refused_by_name(value: Any, tmp_path: Path) -> None:
    torch.save({**W, "b_dec": value}, tmp_path / "sae.pt")
    with pytest.raises(sk.FormatError, match=r"sae\.pt: entry 'b_dec' is \w+ \(.*\), need a tensor$"):
        sk.load(tmp_path / "sae.pt", config=SAID, format="state dict")


def test_what_a_file_says_beside_its_tensors_counts(tmp_path: Path) -> None:
    for name, content in (
        ("flat", {**W, "apply_b_dec_to_input": True}),
        ("nested", {"sae": W, "apply_b_dec_to_input": True}),
    ):
        torch.save({**content, "activation": "relu", "epoch": 3}, tmp_path / f"{name}.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(tmp_path / f"{name}.pt", read)
        torch.save({**content, "activation": "relu", "twist": 2.0}, tmp_path / f"{name}.pt")
        with pytest.warns(UserWarning, match=r"not known here were not used: 'twist' \(2\.0\)"):
            assert sk.load(tmp_path / f"{name}.pt").metadata.ignored == ("twist",)  # type: ignore[union-attr]
    torch.save({**W, **SAID, "cfg": {"activation": "topk", "k": K}}, tmp_path / "two.pt")
    with pytest.raises(sk.FormatError, match="'activation' is 'relu', but elsewhere in it 'topk'"):
        sk.load(tmp_path / "two.pt")


@pytest.mark.parametrize("kind", ["sparse", "nested", "on the meta device", "quantised"])
def test_tensors_that_are_not_dense(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = {
            "sparse": W["W_enc"].to_sparse(),
            "nested": torch.nested.nested_tensor([torch.ones(3), torch.ones(4)]),
            "on the meta device": W["W_enc"].to("meta"),
            "quantised": torch.quantize_per_tensor(W["W_enc"], 0.1, 0, torch.qint8),
        }[kind]
        torch.save({**W, "W_enc": odd, "cfg": {**SAID, "activation": "topk", "k": K}}, tmp_path / "sae.pt")
        message = f"tensor 'W_enc' is {kind}, need a dense tensor that holds values"
        with pytest.raises(sk.FormatError, match=message):
            sk.load(tmp_path / "sae.pt")
        for command in (["info", str(tmp_path / "sae.pt")], ["convert", str(tmp_path / "sae.pt"), str(tmp_path / "o")]):
            assert message in fails(capsys, command)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_values_that_are_no_finite_numbers_are_told(name: str, value: float, tmp_path: Path) -> None:
    odd = W[name].clone()
    odd.view(-1)[-1] = value
    torch.save({**W, name: odd}, tmp_path / "sae.pt")
    with pytest.warns(UserWarning, match=rf"sae\.pt: '{name}': values that are no finite numbers"):
        sk.load(tmp_path / "sae.pt", config=SAID)


def test_thresholds_of_infinity_and_large_values_are_none_of_them(tmp_path: Path) -> None:
    big = {**W, "W_enc": torch.full((D, F), 3e38), "threshold": torch.full((F,), torch.inf)}
    np.savez(tmp_path / "params.npz", **{name: value.numpy() for name, value in big.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sk.load(tmp_path)
    np.savez(tmp_path / "params.npz", **{**W, "threshold": torch.full((F,), torch.nan)})
    with pytest.warns(UserWarning, match="'threshold': values that are no finite numbers"):
        sk.load(tmp_path)


@pytest.mark.parametrize("name", ["params.npz", "params.safetensors", "ae.pt", "sae.safetensors", "cfg.json"])
def test_a_pointer_of_git_lfs_is_told(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n")
    if name == "cfg.json":
        save_file(W, tmp_path / "sae_weights.safetensors")
    told = fails(capsys, ["info", str(tmp_path)])
    assert told.strip().endswith(f"{name}: a pointer of Git LFS, need the file itself: git lfs pull")


def test_arrays_of_objects_are_not_advised_to_be_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(sk.FormatError, match=r"it holds other objects than arrays, which are never unpickled$"):
        sk.load(tmp_path)
    assert main(["info", str(tmp_path)]) == 2
