"""Names that all begin with what wraps a module: taken off by every reader, and kept where only some begin so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import saekernels as sk
from plain_tensors import WRITERS, W, relu, top
from zoo import LINEAR, D, K, check, openai, random

PREFIXES = ["module.", "_orig_mod.", "autoencoder.", "sae.", "model.", "_orig_mod.module.", "model._orig_mod.sae."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_for_every_reader(prefix: str, tmp_path: Path) -> None:
    def named(tensors: dict[str, Any]) -> dict[str, Any]:
        return {prefix + n if isinstance(v, Tensor) else n: v for n, v in tensors.items()}

    for suffix, write in WRITERS.items():
        write(named(W), tmp_path / f"plain{suffix}")
        check(tmp_path / f"plain{suffix}", relu, config={"activation": "relu", "apply_b_dec_to_input": True})
    torch.save(named({**LINEAR, "bias": random(D)}), tmp_path / "ae.pt")
    assert sk.load(tmp_path / "ae.pt").metadata.format == "dictionary_learning"
    openai(tmp_path / "7.pt")
    torch.save(named(torch.load(tmp_path / "7.pt")), tmp_path / "8.pt")
    x = random(9, D, seed=5)
    assert torch.equal(sk.load(tmp_path / "8.pt")(x), sk.load(tmp_path / "7.pt")(x))
    qwen = {
        "W_enc": W["W_enc"].T.contiguous(),
        "W_dec": W["W_dec"].T.contiguous(),
        "b_enc": W["b_enc"],
        "b_dec": W["b_dec"],
    }
    torch.save(named(qwen), tmp_path / "layer3.sae.pt")
    check(tmp_path / "layer3.sae.pt", lambda x: top(x, shift=False), k=K)
    save_file(named({**qwen, "W_dec": W["W_dec"]}), tmp_path / "layer_3.safetensors")
    check(tmp_path / "layer_3.safetensors", lambda x: relu(x, shift=False))
    sk.save(sk.load(tmp_path / "7.pt"), tmp_path / "lens")
    weights = tmp_path / "lens" / "sae_weights.safetensors"
    save_file(named(load_file(weights)), weights)
    torch.testing.assert_close(sk.load(tmp_path / "lens")(x), sk.load(tmp_path / "7.pt")(x), rtol=1e-5, atol=1e-5)


def test_a_prefix_of_some_names_is_part_of_them(tmp_path: Path) -> None:
    torch.save({**W, "module.W_enc": W["W_enc"]}, tmp_path / "sae.pt")
    with pytest.raises(sk.FormatError, match=r"unexpected tensors \['module.W_enc'\]"):
        sk.load(tmp_path / "sae.pt", config={"activation": "relu", "apply_b_dec_to_input": True})
    torch.save({f"sae.{n}": v for n, v in W.items()} | {f"model.{n}": v for n, v in W.items()}, tmp_path / "sae.pt")
    with pytest.raises(sk.FormatError, match="no known format has the entries"):
        sk.load(tmp_path / "sae.pt")
    torch.save({"sae": W, "model": W}, tmp_path / "sae.pt")
    with pytest.raises(sk.FormatError, match="no known format has the entries"):
        sk.load(tmp_path / "sae.pt")
