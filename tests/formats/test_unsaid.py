"""What files say and their format does not read, or contradict, or leave open: told or refused, never passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import saekernels as sk
from saekernels.cli import main
from zoo import D, F, K, dictionary, gemma, llama, random

GOODFIRE = {"encoder_linear.weight": random(F, D), "encoder_linear.bias": random(F),
            "decoder_linear.weight": random(D, F), "decoder_linear.bias": random(D)}  # fmt: skip
OPENAI = {
    "encoder.weight": random(F, D),
    "decoder.weight": random(D, F),
    "latent_bias": random(F),
    "pre_bias": random(D),
}
ROWS = {"W_enc": random(F, D), "W_dec": random(D, F), "b_enc": random(F), "b_dec": random(D)}


@pytest.mark.parametrize(
    ("tensors", "name"),
    [(GOODFIRE, "sae.pt"), (OPENAI, "sae.pt"), (ROWS, "x-L0_5/layer3.sae.pt")],
    ids=["Goodfire", "OpenAI", "Qwen Scope"],
)
@pytest.mark.parametrize("beside", ["config.json", "cfg.json", "{stem}.json", "{stem}_cfg.json"])
def test_a_config_that_a_format_does_not_read_is_told(
    tensors: dict[str, torch.Tensor], name: str, beside: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save(tensors, path)
    config = path.parent / beside.format(stem=path.stem)
    config.write_text(json.dumps({"activation": "topk", "k": 2}))
    with pytest.warns(UserWarning, match=f"'{config.name}' beside it is no part of .* and was not read"):
        sk.load(path)
    config.unlink()
    sk.load(path)


def test_two_configs_of_a_state_dict_have_to_agree(tmp_path: Path) -> None:
    torch.save({**{name: ROWS[name] for name in ("b_enc", "b_dec")}, "W_enc": random(D, F), "W_dec": random(F, D)},
               tmp_path / "sae.pt")  # fmt: skip
    said = {"activation": "topk", "k": K, "apply_b_dec_to_input": True}
    (tmp_path / "sae.json").write_text(json.dumps(said))
    (tmp_path / "cfg.json").write_text(json.dumps({**said, "lr": 1e-3}))
    assert sk.load(tmp_path / "sae.pt").activation == sk.TopK(K)
    (tmp_path / "cfg.json").write_text(json.dumps({"activation": "relu"}))
    with pytest.raises(sk.FormatError, match="'activation' is 'topk', but elsewhere 'relu'"):
        sk.load(tmp_path / "sae.pt")


@pytest.mark.parametrize("ends", [{}, {"hook_point_out": "other"}])
def test_token_wise_norms_are_of_what_is_replaced(ends: dict[str, str], tmp_path: Path) -> None:
    llama(tmp_path, {"act_fn": "relu", "norm_activation": "token-wise", **ends}, names="v2")
    if not ends:
        assert sk.load(tmp_path).normalization == sk.ConstantNorm()
        return
    with pytest.raises(sk.FormatError, match="'token-wise' for a transcoder, need dataset-wise or inference"):
        sk.load(tmp_path)


def test_numbers_of_latents_have_to_agree(tmp_path: Path) -> None:
    gemma(tmp_path / "gemma", suffix="safetensors")
    (tmp_path / "gemma" / "config.json").write_text(json.dumps({"architecture": "jump_relu", "width": F + 1}))
    llama(tmp_path / "llama", {"d_sae": F + 1, "jump_relu_threshold": 0.1, "norm_activation": "inference"})
    matryoshka = {"W_enc": random(D, F), "W_dec": random(F, D), "b_enc": random(F), "b_dec": random(D),
                  "k": torch.tensor(K), "threshold": torch.tensor(0.3),
                  "group_sizes": torch.tensor([F, 3])}  # fmt: skip
    dictionary(tmp_path / "groups", matryoshka)
    for folder, message in (
        ("gemma", f"'width' is {F + 1}, but params.safetensors has {F} latents"),
        ("llama", f"'d_sae' is {F + 1}, but final.safetensors has {F} latents"),
        ("groups", f"its group_sizes sum to {F + 3}, but it has {F} latents"),
    ):
        with pytest.raises(sk.FormatError, match=message):
            sk.load(tmp_path / folder)


def test_a_k_that_contradicts_a_name_or_lacks_its_activation(tmp_path: Path) -> None:
    (tmp_path / "x-L0_5").mkdir()
    torch.save(ROWS, tmp_path / "x-L0_5" / "layer3.sae.pt")
    assert sk.load(tmp_path / "x-L0_5" / "layer3.sae.pt", k=5).activation == sk.TopK(5, relu=False)
    with pytest.raises(sk.FormatError, match=r"k: got 9, but .* is of a repository with L0_5"):
        sk.load(tmp_path / "x-L0_5" / "layer3.sae.pt", k=9)
    save_file({**ROWS, "W_dec": random(F, D)}, tmp_path / "layer_3.safetensors")
    (tmp_path / "config.yaml").write_text("model_kind: transcoder_set\nk: 14\n")
    with pytest.raises(sk.FormatError, match=r"it gives 'k' \(14\) without 'activation', need both"):
        sk.load(tmp_path / "layer_3.safetensors")


CROSSCODER = {"W_enc": random(2, D, F), "W_dec": random(F, 2, D), "b_enc": random(F), "b_dec": random(2, D)}


@pytest.mark.parametrize(
    ("name", "tensors", "said"),
    [
        ("cc_weights.pt", CROSSCODER, "a crosscoder, which reads and writes several activations"),
        ("ae.pt", {"encoder.weight": random(2, D, F), "encoder.bias": random(F), "decoder.weight": random(2, F, D),
                   "decoder.bias": random(2, D)}, "a crosscoder, which reads and writes several activations"),
        ("W_enc_0.safetensors", {"W_enc_0": random(F, D), "b_enc_0": random(F)}, "a cross-layer transcoder, which"),
        ("params_layer_0.safetensors", {"w_enc": random(D, F)}, "a cross-layer transcoder, which writes to several"),
        ("params.safetensors", {"w_enc": random(3, D, F), "w_dec": random(3, F, 3, D)}, "a cross-layer transcoder"),
    ],
)  # fmt: skip
def test_what_is_no_single_sae_is_refused_by_its_name(
    name: str, tensors: dict[str, torch.Tensor], said: str, tmp_path: Path
) -> None:
    (torch.save if name.endswith(".pt") else save_file)(tensors, tmp_path / name)
    with pytest.raises(sk.FormatError, match=said):
        sk.load(tmp_path)


def test_a_missing_tensor_is_told_beside_all_that_are_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.ones((D, F), np.float32), W_dec=np.ones((F, D), np.float32),
             b_enc=np.ones(F, np.float32), b_dec=np.ones(D, np.float32))  # fmt: skip
    with pytest.raises(
        sk.FormatError, match=r"'threshold' is missing; the file has \['W_dec', 'W_enc', 'b_dec', 'b_enc'\]"
    ):
        sk.load(tmp_path)


def test_the_command_line_says_which_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    square: dict[str, Any] = {"W_enc": random(D, D), "W_dec": random(D, D), "b_enc": random(D), "b_dec": random(D)}
    torch.save(square, tmp_path / "x.pt")
    for command in (["info", str(tmp_path / "x.pt")], ["convert", str(tmp_path / "x.pt"), str(tmp_path / "out")]):
        assert main(command) == 2
        assert "say --format 'Qwen Scope' where rows are" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "x.pt"), "--format", "qwen scope", "--k", "3"]) == 0
    assert "TopK(k=3, relu=False)" in capsys.readouterr().out
