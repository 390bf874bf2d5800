"""Transcoders of circuit-tracer: layer_N.safetensors, and the config.yaml of the set that the layers belong to.

Rows of W_enc are latents. W_dec has a row for each latent too, or, in files from before its decoders were read row by
row, a column. The activation is in the file (thresholds, or k) or in the config; files without either are ReLU.
Their TopK and JumpReLU keep what they choose as it is: no ReLU follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from saekernels.formats.checkpoint import Checkpoint, build, of_thresholds
from saekernels.formats.config import Config, integer, read_json, read_yaml, told
from saekernels.formats.files import FormatError, Tensors, refuse_scale
from saekernels.sae.activations import Activation, JumpReLU, ReLU, TopK
from saekernels.sae.metadata import Metadata

NAME = "circuit-tracer"
FILES = "layer_N.safetensors (+ config.yaml)"
CONFIGS = ("config.yaml", "config.yml", "config.json")
_LAYER = re.compile(r"layer_\d+")
_CROSS_LAYER = re.compile(r"W_(enc|dec)_\d+")
_THRESHOLDS = ("threshold", "activation_function.threshold")
_WITHOUT_EFFECT = ("scan", "transcoders", "features", "repo_id", "revision", "id", "n_layers", "d_model", "license")


def sure(path: Path, found: Mapping[str, Tensor]) -> bool:
    """Whether a safetensors file is of this format for certain: by its name, the set's config, or what it selects by.

    Other matrices with latents as rows could be anyone's.
    """
    named = _LAYER.fullmatch(path.stem) is not None or (len(config_beside(path)) > 0 and "W_enc" in found)
    return named or any(name in found for name in (*_THRESHOLDS, "k", "W_skip"))


def read(path: Path, input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The transcoder of one layer. Cross-layer transcoders (W_enc_N, or a config that says so) are refused."""
    refuse_scale(input_scale, path)
    config = config_beside(path)
    if config.get("model_kind", "transcoder_set") != "transcoder_set":
        raise FormatError(
            f"{config.path}: 'model_kind' is {config['model_kind']!r:.40}, need 'transcoder_set'; "
            "saekernels.load_cross_layer reads folders of cross-layer transcoders"
        )
    tensors = Tensors(path)
    if tensors.dimensions("W_dec") == 3 or any(_CROSS_LAYER.match(name) for name in tensors.names):
        raise FormatError(
            f"{path}: need W_enc and W_dec of one layer; cross-layer transcoders are no single SAE: "
            "saekernels.load_cross_layer reads their folder"
        )
    n_latents, d_in = tensors.shape("W_enc")
    (d_out,) = tensors.shape("b_dec", 1)
    by_latent = d_out == n_latents or tensors.shape("W_dec") != (d_out, n_latents)
    if d_out == n_latents != d_in:
        raise FormatError(f"{path}: W_dec has shape {[d_out, d_out]}, which does not tell the latents' side")
    state = {
        "W_enc": tensors.take("W_enc", n_latents, d_in),
        "b_enc": tensors.take("b_enc", n_latents),
        "W_dec": tensors.take("W_dec", n_latents, d_out) if by_latent else tensors.take("W_dec", d_out, n_latents).T,
        "b_dec": tensors.take("b_dec", d_out),
    }
    activation = activation_of(config, tensors, state, k)
    if "W_skip" in tensors:
        state["W_skip"] = tensors.take("W_skip", d_out, d_in)
    tensors.done()
    metadata = Metadata(
        NAME,
        model=told(config, "model_name", str),
        reads=_at_layer(path, told(config, "feature_input_hook", str)),
        writes=_at_layer(path, told(config, "feature_output_hook", str)),
        ignored=config.unknown(_WITHOUT_EFFECT),
    )
    return build(path, state, activation, metadata)


def config_beside(path: Path) -> Config:
    """The config of the set that a layer's file belongs to; empty where there is none."""
    found = next((beside for name in CONFIGS if (beside := path.parent / name).is_file()), None)
    if found is None:
        return Config(path, {})
    return read_json(found) if found.suffix == ".json" else read_yaml(found)


def activation_of(
    config: Config, tensors: Tensors, state: dict[str, Tensor], k: int | None, names: tuple[str, ...] = _THRESHOLDS
) -> Activation:
    """What the file and the config say, which must be the same; a k from the caller where neither says anything.

    names: of tensors of thresholds, which go into the state.
    """
    n_latents = len(state["b_enc"])
    own = tensors.number("k")
    tensors.drop("k")
    for name in names:
        if name in tensors:
            one = tensors.number(name) if tensors.size(name) == 1 else None
            whole = torch.full((n_latents,), one, dtype=of_thresholds(state)) if one is not None else None
            state["threshold"] = tensors.take(name, n_latents) if whole is None else whole
            tensors.drop(name)
    inside = "topk" if own is not None else "jumprelu" if "threshold" in state else None
    said = config.kept("activation", "activation_fn")
    outsides = {str(value).lower().replace("_", "") for value in said.values()}
    if len(outsides) > 1:
        raise FormatError(f"{config.path}: {' and '.join(f'{k!r} is {v!r:.40}' for k, v in said.items())}, need one")
    named, outside = next(iter(said.values()), None), next(iter(outsides), None)
    if None not in (inside, outside) and inside != outside:
        raise FormatError(f"{tensors.path}: its tensors are of {inside!r}, but {config.path} says {named!r:.40}")
    kind = inside or outside or ("topk" if k is not None else "relu")
    told_k = [_whole(one) for one in (own, config.get("k"), k) if one is not None]
    if kind != "topk" and config.get("k") is not None:
        need = (
            "without 'activation', need both"
            if kind == "relu" and named is None
            else f"but is {kind!r}, which has none"
        )
        raise FormatError(f"{config.path}: it gives 'k' ({config['k']!r:.40}) {need}")
    if kind == "topk":
        counts = {integer({"k": one}, "k", tensors.path) for one in told_k}
        if len(counts) != 1:
            raise FormatError(f"{tensors.path}: k is {sorted(counts) or 'in no file'}, need one value; give k")
        return TopK(counts.pop(), relu=False)
    if k is not None:
        raise FormatError(f"k: got {k}, but {tensors.path} is {kind!r}, which has none")
    if kind == "relu":
        return ReLU()
    if kind != "jumprelu" or "threshold" not in state:
        needed = "thresholds in the file" if kind == "jumprelu" else "relu, topk or jumprelu"
        raise FormatError(f"{config.path}: 'activation' is {named!r:.40}, need {needed}")
    least = float(state["threshold"].min())
    if least < 0:
        raise FormatError(f"{tensors.path}: a threshold is {least:g}, need at least 0: negative latents are not served")
    return JumpReLU()


def _whole(number: object) -> object:
    """A count as an int, which a tensor holds as 32.0; what is none is left for its check to refuse."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _at_layer(path: Path, hook: str | None) -> str | None:
    """A hook point of the set, "mlp.hook_in", at this file's layer."""
    layer = path.stem.rpartition("_")[2]
    return f"blocks.{layer}.{hook}" if hook is not None and layer.isdigit() else hook
