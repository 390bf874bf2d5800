"""crosslayer-coding: cfg.json and one file of weights, a decoder and a bias for each pair of layers.

`encoder_module.encoders.S.weight` is [F, d], `decoder_module.decoders.S->T.weight` [d, F]; biases of all pairs to one
target are added up. TopK and BatchTopK there choose by scores that depend on the batch, over all layers or of one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from saekernels.formats.config import Config, boolean, integer, read_json, told
from saekernels.formats.files import FormatError, Tensors, refuse_k
from saekernels.formats.layers.found import Layer, Layers, tensors_at
from saekernels.sae.activations import Activation, JumpReLU, ReLU
from saekernels.sae.metadata import Metadata

NAME = "crosslayer-coding"
FILES = "cfg.json with num_features and num_layers + a .safetensors or .pt"
_ENCODER, _DECODER = "encoder_module.encoders", "decoder_module.decoders"
_THRESHOLDS = ("theta_manager.log_threshold", "log_threshold")
_WITHOUT_EFFECT = """
    jumprelu_threshold batchtopk_k batchtopk_straight_through topk_k topk_straight_through topk_mode
    two_stage_batchtopk clt_dtype expected_input_dtype
""".split()  # noqa: SIM905


def find(folder: Path) -> bool:
    """Whether a folder is of this format."""
    path = folder / "cfg.json"
    return path.is_file() and {"num_features", "num_layers"} <= read_json(path).keys()


def read(folder: Path, k: int | None = None) -> Layers:
    """The transcoder of a folder, if its decoders are untied and nothing is done to codes between them."""
    config = read_json(folder / "cfg.json")
    refuse_k(k, config.path)
    _refuse(config)
    n_layers, n_latents, d = (integer(config, name, config.path) for name in ("num_layers", "num_features", "d_model"))
    tensors = tensors_at(_weights(folder))
    activation, thresholds = _activation(config, tensors, n_layers, n_latents)
    to = [torch.zeros(d, dtype=torch.float64) for _ in range(n_layers)]
    layers = []
    for s in range(n_layers):
        views = []
        for t in range(s, n_layers):
            name = f"{_DECODER}.{s}->{t}"
            views.append(tensors.take(f"{name}.weight", d, n_latents).T)
            to[t] += _bias(tensors, f"{name}.bias_param", d, views[-1].dtype).double()
        W_enc = tensors.take(f"{_ENCODER}.{s}.weight", n_latents, d)
        b_enc = _bias(tensors, f"{_ENCODER}.{s}.bias_param", n_latents, W_enc.dtype)
        # All that is written at layer s has been added up: sources come in order.
        state = {"W_enc": W_enc, "b_enc": b_enc, "b_dec": to[s].to(W_enc.dtype)}
        if thresholds is not None:
            state["threshold"] = thresholds[s]
        layers.append(Layer(state, views, activation))
    tensors.drop(*(name for name in tensors.names if name.startswith("theta_manager.") and name not in _THRESHOLDS))
    tensors.done()
    metadata = Metadata(
        NAME,
        model=told(config, "model_name", str),
        other=config.kept("mlp_input_template", "mlp_output_template", "tl_input_template", "tl_output_template"),
        ignored=config.unknown(_WITHOUT_EFFECT),
    )
    return Layers(folder, tuple(layers), metadata, _sites(config, n_layers))


def _refuse(config: Config) -> None:
    """FormatError for what is no cross-layer transcoder of untied decoders on activations as they are."""
    for name, need in (("decoder_tying", "none"), ("normalization_method", "none")):
        if config.get(name, need) != need:
            raise FormatError(f"{config.path}: {name!r} is {config[name]!r:.40}, need {need!r}")
    for name in ("enable_feature_offset", "enable_feature_scale", "skip_connection", "sqrt_d_model_normalize"):
        if boolean(config, name, config.path):
            raise FormatError(f"{config.path}: {name!r} is true, need false")


def _activation(config: Config, tensors: Tensors, n_layers: int, n_latents: int) -> tuple[Activation, Tensor | None]:
    function = config.get("activation_fn", "jumprelu")
    name = next((name for name in _THRESHOLDS if name in tensors), None)
    if function == "relu":
        tensors.drop(*_THRESHOLDS)
        return ReLU(), None
    if function == "jumprelu" and name is not None:
        return JumpReLU(), tensors.take(name, n_layers, n_latents).float().exp()
    if function in ("topk", "batchtopk"):
        over = "all layers" if config.get("topk_mode", "global") == "global" else "each layer"
        raise FormatError(
            f"{config.path}: 'activation_fn' is {function!r} over {over}, by scores that depend on the batch: it "
            "cannot run layer by layer; convert it to JumpReLU with the tool's convert_batchtopk_to_jumprelu"
        )
    need = "thresholds in the file" if function == "jumprelu" else "relu or jumprelu"
    raise FormatError(f"{config.path}: 'activation_fn' is {function!r:.40}, need {need}")


def _bias(tensors: Tensors, name: str, size: int, dtype: torch.dtype) -> Tensor:
    return tensors.take(name, size) if name in tensors else torch.zeros(size, dtype=dtype)


def _sites(config: Config, n_layers: int) -> tuple[str, ...] | None:
    reads, writes = (told(config, f"tl_{end}_template", str) for end in ("input", "output"))
    if not (reads and writes and "{}" in reads and "{}" in writes):
        return None
    return tuple(f"{reads.replace('{}', str(s))} -> {writes.replace('{}', str(s))}" for s in range(n_layers))


def _weights(folder: Path) -> Path:
    for suffix in (".safetensors", ".pt"):
        found = sorted(path for path in folder.iterdir() if path.suffix == suffix)
        if len(found) == 1:
            return found[0]
    raise FormatError(f"{folder}: need one .safetensors or .pt file of weights beside cfg.json")
