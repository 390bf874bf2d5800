"""Checkpoints that would be read as something else than they are, and saves that would write something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import saekernels as sk
from saekernels.files import atomic
from zoo import randomised, saelens_folder, sparsify_folder

OLD = {"architecture": ..., "k": ..., "metadata": ..., "rescale_acts_by_decoder_norm": ...}
SAELENS: list[tuple[dict[str, Any], str]] = [
    ({"architecture": ...}, "'architecture' is missing, need it beside 'metadata'"),
    ({"architecture": ..., "metadata": ...}, "'architecture' is missing, need it beside 'k'"),
    ({**OLD, "d_out": 8}, "'architecture' is missing, need it beside 'd_out'"),
    ({**OLD, "activation_fn_kwargs": {"k": 4}}, "'standard' with the activation function None and k = 4"),
    ({**OLD, "activation_fn_str": "tanh-relu"}, "activation function 'tanh-relu'"),
    ({**OLD, "activation_fn": "topk"}, "activation function 'topk' and k = None"),
    ({"architecture": "standard", "activation_fn": "gelu"}, "activation function 'gelu'"),
    ({"architecture": "standard", "activation_fn_str": "topk", "k": ...}, "function 'topk', need 'topk'"),
    ({**OLD, "activation_fn": "topk", "activation_fn_kwargs": {"k": 4, "signed": True}}, "has 'signed': True, need k"),
    ({"architecture": "transcoder", "k": ..., "d_out": 8}, "'apply_b_dec_to_input' is true, need false"),
    ({"architecture": "gated", "activation_fn": "topk"}, "'gated' with the activation function 'topk'"),
    ({"activation_fn": "relu"}, "'topk' with the activation function 'relu'"),
    ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 5}}, "'k' is 4 and 5 in 'activation_fn_kwargs'"),
    ({"activation_fn": "topk", "activation_fn_kwargs": [4]}, r"'activation_fn_kwargs' is \[4\], need an object"),
    ({"activation_fn": 4}, "'activation_fn' is 4, need a string"),
    ({"apply_b_dec_to_input": "false"}, "'apply_b_dec_to_input' is 'false', need true or false"),
    ({"rescale_acts_by_decoder_norm": "false"}, "'rescale_acts_by_decoder_norm' is 'false', need true or false"),
    ({"normalize_activations": 1}, "'normalize_activations' is 1, need a string"),
    ({"dtype": "float8"}, "'dtype' is 'float8', need one of"),
    ({"dtype": 32}, "'dtype' is 32, need a string"),
    ({"architecture": ["topk"]}, r"'architecture' is \['topk'\], need a string"),
    ({"architecture": None}, "'architecture' is None, need a string"),
    ({"d_in": 10**30}, r"'d_in' is 10000.*need at most 2\^31 - 1"),
    ({"d_sae": 2**40}, r"'d_sae' is 1099511627776, need at most 2\^31 - 1"),
    ({"d_sae": 2**31 - 1, "d_in": 2**31 - 1}, "the config needs"),
    ({"d_in": 8.0}, "'d_in' is 8.0, need a positive integer"),
    (
        {
            "architecture": "transcoder",
            "k": ...,
            "d_out": 8,
            "apply_b_dec_to_input": False,
            "normalize_activations": "layer_norm",
        },
        "'normalize_activations' is 'layer_norm' for a transcoder, need 'none'",
    ),
]


@pytest.mark.parametrize(("config", "message"), SAELENS, ids=[message[:40] for _, message in SAELENS])
def test_saelens_configs_that_contradict_themselves(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", **config)
    with pytest.raises(sk.FormatError, match=message):
        sk.load(folder)


def test_an_old_config_may_leave_out_its_architecture(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "relu", **OLD, activation_fn_str="relu", activation_fn_kwargs={})
    assert sk.load(folder).activation == sk.ReLU()
    folder = saelens_folder(tmp_path / "topk", **OLD, activation_fn="topk", activation_fn_kwargs={"k": 4})
    assert sk.load(folder).activation == sk.TopK(4)


@pytest.mark.parametrize("name", ["signed", "skip_connection", "transcode"])
def test_sparsify_booleans_are_not_strings(name: str, tmp_path: Path) -> None:
    with pytest.raises(sk.FormatError, match=f"'{name}' is 'false', need true or false"):
        sk.load(sparsify_folder(tmp_path / "sae", **{name: "false"}))


def test_a_config_with_a_number_past_reading(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae")
    (folder / "cfg.json").write_text('{"d_in": ' + "9" * 5000 + "}")
    with pytest.raises(sk.FormatError, match="not a readable JSON config"):
        sk.load(folder)


def test_the_path_is_named_once(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", normalize_activations="whitening")
    with pytest.raises(sk.FormatError) as caught:
        sk.load(folder)
    assert str(caught.value).count(str(folder)) == 1


def test_options_are_not_blamed_on_the_config(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", normalize_activations="layer_norm")
    for scale in (0, -1.0, float("nan"), "2"):
        with pytest.raises(ValueError, match=r"^input_scale: got .*, need a positive finite number"):
            sk.load(folder, input_scale=scale)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^input_scale: got 2.0 for a checkpoint whose normalization is 'layer_norm'"):
        sk.load(folder, input_scale=2.0)
    for dtype in (torch.complex64, torch.int64, "float32"):
        with pytest.raises(TypeError, match=r"^dtype: got .*, need one of torch.float32"):
            sk.load(folder, dtype=dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "over another"])
@pytest.mark.parametrize(
    ("make", "metadata", "message"),
    [
        (lambda: sk.SAE(8, 24, sk.ReLU()), {"when": object()}, "metadata: cannot be written as JSON"),
        (lambda: sk.SAE(8, 24, sk.ReLU()), {"loss": float("nan")}, "metadata: cannot be written as JSON"),
        (lambda: sk.SAE(8, 24, sk.ReLU(), device="meta"), {}, "sae: its weights are on the meta device"),
        (lambda: sk.SAE(8, 24, sk.ReLU(), normalization=sk.LayerNorm(1e-3)), {}, r"sae: got LayerNorm\(eps=0.001\)"),
    ],
    ids=["metadata", "nan", "meta", "eps"],
)
def test_a_save_that_cannot_be_done_changes_nothing(
    make: Any, metadata: dict[str, object], message: str, fresh: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "sae"
    if not fresh:
        saelens_folder(folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*")}
    with pytest.raises(sk.FormatError, match=message):
        sk.save(make(), folder, metadata=metadata)
    assert folder.exists() is not fresh
    assert {path.name: path.read_bytes() for path in folder.glob("*")} == before


def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saelens_folder(tmp_path / "sae")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    genuine, calls = atomic._stage, []

    def second_fails(target: str, data: bytes) -> str:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return genuine(target, data)

    monkeypatch.setattr(atomic, "_stage", second_fails)
    with pytest.raises(OSError, match="No space left"):
        sk.save(randomised(sk.SAE(8, 24, sk.ReLU())), folder)
    assert len(calls) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_layer_norm_of_saelens_is_saved(tmp_path: Path) -> None:
    sk.save(sk.SAE(8, 24, sk.ReLU(), normalization=sk.LayerNorm(eps=1e-5)), tmp_path / "sae")
    assert json.loads((tmp_path / "sae" / "cfg.json").read_text())["normalize_activations"] == "layer_norm"
    assert sk.load(tmp_path / "sae").normalization == sk.LayerNorm()
