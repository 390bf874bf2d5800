"""Gemma Scope 2's cross-layer transcoders and weakly causal crosscoders: params_layer_N.safetensors, one a layer.

Decoders are square, [F, L, d]: a slot for every layer, those before its own too, which have to be 0. They are used
where they lie. JumpReLU there is relu(x) * (x > threshold), as here. Widths in the folders' names are totals.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from saekernels.formats.config import Config, read_json, told
from saekernels.formats.files import FormatError, Tensors, refuse_k
from saekernels.formats.layers.found import Layer, Layers, numbered
from saekernels.formats.looking import is_looking
from saekernels.sae.activations import JumpReLU
from saekernels.sae.metadata import Metadata

NAME = "Gemma Scope 2"
FILES = "params_layer_N.safetensors (+ config.json)"
_WITHOUT_EFFECT = ("width", "l0", "num_params", "layer", "layers", "site", "type", "dtype")
_ROWS = 4096  # of a decoder at a time, when its acausal half is looked at


def find(folder: Path) -> bool:
    """Whether a folder is of this format."""
    return any(folder.glob("params_layer_*.safetensors"))


def read(folder: Path, k: int | None = None) -> Layers:
    """The transcoder or crosscoder of a folder."""
    refuse_k(k, folder)
    files = numbered(folder, "params_layer")
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else Config(folder, {})
    n_layers, layers = len(files), []
    d, n_latents = Tensors(files[0]).shape("w_enc")
    for s, file in enumerate(files):
        tensors = Tensors(file)
        state = {
            "W_enc": tensors.take("w_enc", d, n_latents).T,
            "b_enc": tensors.take("b_enc", n_latents),
            "b_dec": tensors.take("b_dec", d),
            "threshold": tensors.take("threshold", n_latents),
        }
        if "affine_skip_connection" in tensors:
            state["W_skip"] = tensors.take("affine_skip_connection", d, d).T
        square = tensors.take("w_dec", n_latents, n_layers, d)
        tensors.done()
        _refuse_acausal(file, square, s)
        layers.append(Layer(state, square[:, s:], JumpReLU(), file))
    _check(config, "W_skip" in layers[0].state)
    metadata = Metadata(
        NAME,
        model=told(config, "model_name", str),
        ignored=config.unknown(_WITHOUT_EFFECT),
        other=config.kept("hf_hook_point_in", "hf_hook_point_out"),
    )
    return Layers(folder, tuple(layers), metadata, _sites(folder, config, n_layers))


def _refuse_acausal(file: Path, square: Tensor, layer: int) -> None:
    """FormatError where a layer writes to one before its own."""
    for start in range(0, 0 if is_looking() or not layer else len(square), _ROWS):
        before = square[start : start + _ROWS, :layer]
        if bool(before.count_nonzero()):
            target = int(before.ne(0).any(-1).any(0).nonzero()[0])
            raise FormatError(
                f"{file}: w_dec writes from layer {layer} to layer {target}, which is before it, need zeros there"
            )


def _check(config: Config, skip: bool) -> None:
    """FormatError where the config speaks of another function than the tensors."""
    architecture = config.get("architecture", "jump_relu")
    if str(architecture).lower().replace("_", "") != "jumprelu":
        raise FormatError(f"{config.path}: 'architecture' is {architecture!r:.40}, need 'jump_relu'")
    affine = config.get("affine_connection", config.get("affine_skip_connection", skip))
    if affine is not skip:
        has = "have" if skip else "have no"
        raise FormatError(f"{config.path}: 'affine_connection' is {affine!r:.40}, but the files {has} such matrices")


def _sites(folder: Path, config: Config, n_layers: int) -> tuple[str, ...] | None:
    """From the config, if it names one place for each layer, else from the folders' names.

    A transcoder reads the output of pre_feedforward_layernorm, which is what the MLP is given, and writes the output of
    post_feedforward_layernorm; a crosscoder reads and writes residual streams.
    """
    ends = [config.get(f"hf_hook_point_{end}") for end in ("in", "out")]
    if all(isinstance(end, list) and len(end) == n_layers for end in ends):
        return tuple(a if a == b else f"{a} -> {b}" for a, b in zip(*ends, strict=True))
    where = folder.resolve().as_posix()
    layers = re.findall(r"\d+", found[1]) if (found := re.search(r"crosscoder/layer((?:_\d+)+)_width", where)) else []
    if len(layers) == n_layers:
        return tuple(f"blocks.{layer}.hook_resid_post" for layer in layers)
    if "/clt/" in where:
        return tuple(f"blocks.{layer}.mlp.hook_in -> blocks.{layer}.hook_mlp_out" for layer in range(n_layers))
    return None
