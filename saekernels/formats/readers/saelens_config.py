"""The config of a SAELens checkpoint: its fields in the names used since 6.0, and what they stand for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from saekernels.formats.files import FormatError, read_config, text
from saekernels.sae.activations import (
    AbsTopK,
    ConstantNorm,
    Gated,
    JumpReLU,
    LayerNorm,
    Normalization,
    ReLU,
    Scale,
    TopK,
)

# architecture -> (activation, is a transcoder, has a skip connection)
ARCHITECTURES: dict[str, tuple[type, bool, bool]] = {
    "standard": (ReLU, False, False),
    "topk": (TopK, False, False),
    "abstopk": (AbsTopK, False, False),
    "jumprelu": (JumpReLU, False, False),
    "gated": (Gated, False, False),
    "transcoder": (ReLU, True, False),
    "skip_transcoder": (ReLU, True, True),
    "jumprelu_transcoder": (JumpReLU, True, False),
    "jumprelu_skip_transcoder": (JumpReLU, True, True),
}
# Configs of the layout since 6.0 name their architecture; these fields belong to none that could go without.
_NEEDS_ARCHITECTURE = ("metadata", "k", "d_out", "rescale_acts_by_decoder_norm")
LAYER_NORM = LayerNorm()
DTYPES = {
    name: getattr(torch, name.removeprefix("torch."))
    for base in ("float32", "bfloat16", "float16", "float64")
    for name in (base, f"torch.{base}")
}


def read_since_6_0(path: Path) -> dict[str, Any]:
    """The config in the names that SAELens uses since 6.0: before, TopK was an activation function of `standard`.

    Raises FormatError where the old fields and the new ones speak of different functions.
    """
    config = read_config(path)
    if "architecture" not in config:
        _check_old_layout(config, path)
    function, k = _old_activation(config, path)
    config.setdefault("architecture", "standard")
    architecture = text(config, "architecture", path)
    if not _agree(architecture, function, k):
        raise FormatError(
            f"{path}: 'architecture' is {architecture!r} with the activation function {function!r} and k = {k!r:.40}; "
            "need 'relu', or 'topk' and a k for the architectures 'standard' and 'topk'"
        )
    if function == "topk":
        config["architecture"], config["k"] = "topk", k
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = "expected_average_only_in" if config["normalize_activations"] else "none"
    return config


def _agree(architecture: str, function: str | None, k: Any) -> bool:
    if function == "topk":
        return architecture in ("standard", "topk") and k is not None
    if function == "relu" and architecture == "topk":
        return False
    return function in (None, "relu") and (k is None or architecture != "standard")


def _check_old_layout(config: dict[str, Any], path: Path) -> None:
    """Only configs from before 6.0 may leave out the architecture, which was then `standard`."""
    found = [name for name in _NEEDS_ARCHITECTURE if name in config]
    if found:
        raise FormatError(f"{path}: 'architecture' is missing, need it beside {found[0]!r}")


def _old_activation(config: dict[str, Any], path: Path) -> tuple[str | None, Any]:
    """(activation function, its k) as configs from before 6.0 give them; None for what is not there."""
    name = "activation_fn" if "activation_fn" in config else "activation_fn_str"
    function = text(config, name, path) if config.get(name) is not None else None
    kwargs = config.get("activation_fn_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise FormatError(f"{path}: 'activation_fn_kwargs' is {kwargs!r:.40}, need an object")
    k = kwargs.get("k")
    if k is not None and config.get("k", k) != k:
        raise FormatError(f"{path}: 'k' is {config['k']!r:.40} and {k!r:.40} in 'activation_fn_kwargs', need one value")
    return function, config.get("k") if k is None and function == "topk" else k


def dtype_of(config: dict[str, Any], path: Path) -> torch.dtype | None:
    """The dtype that the config asks for; None where it asks for none."""
    if config.get("dtype") is None:
        return None
    name = text(config, "dtype", path)
    if name not in DTYPES:
        raise FormatError(f"{path}: 'dtype' is {name!r:.40}, need one of {list(DTYPES)}")
    return DTYPES[name]


def normalization_of(config: dict[str, Any], path: Path, input_scale: float | None) -> Normalization | None:
    """The normalisation of inputs that the config, or the caller in its place, asks for."""
    kind = "none" if config.get("normalize_activations") is None else text(config, "normalize_activations", path)
    kinds = {"none": None, "layer_norm": LAYER_NORM, "constant_norm_rescale": ConstantNorm()}
    if kind == "expected_average_only_in":
        if input_scale is None:
            warnings.warn(
                f"{path}: trained on scaled activations, and the scale is not in the file; running unscaled. "
                "Pass input_scale= unless it was folded into the weights.",
                stacklevel=4,
            )
    elif kind not in kinds:
        raise FormatError(
            f"{path}: 'normalize_activations' is {kind!r}, need one of {[*kinds, 'expected_average_only_in']}"
        )
    if input_scale is None:
        return kinds.get(kind)
    if kinds.get(kind) is not None:
        raise ValueError(f"input_scale: got {input_scale} for a checkpoint whose normalization is {kind!r}, need None")
    return Scale(input_scale)
