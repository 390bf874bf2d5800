"""What is missing, mixed or another function ends in one line that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import saekernels as sk
from layouts import circuit_tracer, clt_forge, crosslayer_coding, gemma_scope, llamascopium, made
from saekernels.formats.layers.describe import describe_cross_layer


def tensors(name: str, **changes: torch.Tensor | None) -> Callable[[Path], None]:
    """Other tensors in a file of the folder; None takes one away."""

    def change(folder: Path) -> None:
        found = {**load_file(folder / name), **changes}
        save_file({key: value for key, value in found.items() if value is not None}, folder / name)

    return change


def config(name: str, **changes: object) -> Callable[[Path], None]:
    """Other fields in a JSON config of the folder."""

    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return change


def yaml(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.yaml").write_text(text) and None


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


ACAUSAL = torch.zeros(4, 3, 3)
ACAUSAL[2, 0, 1] = 1e-30
CASES = [
    (
        circuit_tracer,
        gone("W_dec_1.safetensors"),
        r"W_dec_1\.safetensors is missing; .* \[0, 2\]",
    ),
    (circuit_tracer, gone("W_dec_2.safetensors"), "3 files W_enc_N and 2 files W_dec_N, need one of each"),
    (circuit_tracer, tensors("W_enc_1.safetensors", b_enc_1=None), "tensor 'b_enc_1' is missing"),
    (circuit_tracer, tensors("W_enc_1.safetensors", threshold_1=None), r"layer 0 is JumpReLU\(\), another is ReLU"),
    (circuit_tracer, tensors("W_enc_1.safetensors", W_skip_1=torch.ones(3, 3)), r"unexpected tensors \['W_skip_1'\]"),
    (circuit_tracer, tensors("W_dec_1.safetensors", W_dec_1=torch.ones(4, 3, 3)), r"has shape \[4, 3, 3\]"),
    (circuit_tracer, yaml("model_kind: other\n"), "'model_kind' is 'other', need 'cross_layer_transcoder'"),
    (circuit_tracer, yaml("activation: topk\nk: 2\n"), "its tensors are of 'jumprelu', but .* says 'topk'"),
    (gemma_scope, tensors("params_layer_1.safetensors", w_dec=ACAUSAL), "from layer 1 to layer 0, which is before it"),
    (gemma_scope, gone("params_layer_0.safetensors"), r"params_layer_0\.safetensors is missing"),
    (gemma_scope, tensors("params_layer_1.safetensors", b_enc=torch.ones(5)), r"'b_enc' has shape \[5\]"),
    (gemma_scope, tensors("params_layer_1.safetensors", affine_skip_connection=torch.ones(3, 3)), "some layers have a"),
    (gemma_scope, lambda folder: (folder / "config.json").write_text('{"architecture": "topk"}'), "need 'jump_relu'"),
    (llamascopium, config("config.json", sae_type="lorsa"), "'lorsa', which is no cross-layer transcoder"),
    (llamascopium, config("config.json", sae_type="molt"), "'molt', which is no cross-layer transcoder"),
    (llamascopium, config("config.json", act_fn="relu"), "'act_fn' is 'relu', but .* has thresholds"),
    (llamascopium, config("config.json", norm_activation="token-wise"), "need none, inference or dataset-wise"),
    (llamascopium, config("config.json", norm_activation="dataset-wise"), "no file has the norm of blocks.0.hook"),
    (llamascopium, config("config.json", hook_points_in=["a"]), "1 'hook_points_in' and 3 'hook_points_out'"),
    (llamascopium, tensors("sae_weights.safetensors", **{"W_D.1": None}), r"'W_D\.1' is missing"),
    (clt_forge, config("clt_cfg.json", d_latent=5), "'d_latent' is 5, but the files have 4 latents"),
    (clt_forge, config("clt_cfg.json", activation_fn="topk"), "'activation_fn' is 'topk', need 'jumprelu'"),
    (clt_forge, gone("clt_weights.safetensors"), "neither clt_weights.safetensors nor shards"),
    (clt_forge, tensors("clt_weights.safetensors", more=torch.ones(1)), r"unexpected tensors \['more'\]"),
    (crosslayer_coding, config("cfg.json", decoder_tying="per_source"), "'decoder_tying' is 'per_source', need 'none'"),
    (crosslayer_coding, config("cfg.json", normalization_method="mean_std"), "'mean_std', need 'none'"),
    (crosslayer_coding, config("cfg.json", skip_connection=True), "'skip_connection' is true, need false"),
    (crosslayer_coding, config("cfg.json", activation_fn="batchtopk"), "over all layers, by scores that depend on"),
    (crosslayer_coding, gone("model.safetensors"), "need one .safetensors or .pt file"),
]


@pytest.mark.parametrize(("write", "change", "message"), CASES, ids=range(len(CASES)))
def test_one_line_says_what_is_wrong(
    write: Callable[..., None], change: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(made(3, 4, 3), tmp_path)
    change(tmp_path)
    with pytest.raises(sk.FormatError, match=message) as caught:
        sk.load_cross_layer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", ["batchlayertopk", "batchtopk"])
def test_choosing_over_a_batch_is_refused(function: str, tmp_path: Path) -> None:
    llamascopium(made(3, 4, 2), tmp_path)
    tensors("sae_weights.safetensors", **{"activation_function.log_jumprelu_threshold": None})(tmp_path)
    config("config.json", act_fn=function, top_k=2)(tmp_path)
    with pytest.raises(sk.FormatError, match=f"'{function}': it chooses over"):
        sk.load_cross_layer(tmp_path)
    config("config.json", act_fn="topk")(tmp_path)
    assert sk.load_cross_layer(tmp_path).source(1).activation == sk.TopK(2)  # type: ignore[operator, union-attr]
    config("config.json", act_fn="layertopk")(tmp_path)
    found = sk.load_cross_layer(tmp_path)
    assert isinstance(found, sk.CrossLayerTranscoder)
    assert found.k_across == 2
    assert describe_cross_layer(tmp_path)["activation"] == ["TopK(k=2) over all layers"] * 2  # type: ignore[index]


def test_affine_codes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "layers.0.mlp").mkdir()
    save_file({"post_encs.0": torch.ones(2)}, tmp_path / "layers.0.mlp" / "sae.safetensors")
    with pytest.raises(sk.FormatError, match="clt-training, whose codes go through an affine map"):
        sk.load_cross_layer(tmp_path)


def test_what_is_none_of_these(tmp_path: Path) -> None:
    with pytest.raises(sk.FormatError, match="no dictionary that spans layers, need one of: W_enc_N"):
        sk.load_cross_layer(tmp_path)
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        sk.load_cross_layer(tmp_path / "gone")
    with pytest.raises(ValueError, match="revision: got 'main'"):
        sk.load_cross_layer(tmp_path, revision="main")
    with pytest.raises(ValueError, match="k: got 0"):
        sk.load_cross_layer(tmp_path, k=0)
    with pytest.raises(TypeError, match="dtype: got"):
        sk.load_cross_layer(tmp_path, dtype=torch.int8)


def test_load_says_who_reads_them(tmp_path: Path) -> None:
    circuit_tracer(made(3, 4, 1), tmp_path)
    with pytest.raises(sk.FormatError, match=r"saekernels\.load_cross_layer"):
        sk.load(tmp_path / "W_dec_0.safetensors")
