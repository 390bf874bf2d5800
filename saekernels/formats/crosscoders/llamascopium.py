"""Llamascopium's crosscoders: config.json with sae_type "crosscoder", and sae_weights.

Every head selects for itself, by the norm of its own decoder row; one pre-activation is the sum of all heads', biases
included. Heads see x * sqrt(d) / (mean norm), where the norm is dataset-wise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekernels.crosslayer.crosscoder import Crosscoder, HeadActivation
from saekernels.formats.checkpoint import of_thresholds
from saekernels.formats.config import Config, boolean, integer
from saekernels.formats.crosscoders.build import (
    Asked,
    build,
    config_beside,
    refuse_alphas,
    refuse_scales,
    refuse_size,
    refuse_unknown,
)
from saekernels.formats.files import FormatError, Tensors
from saekernels.formats.pickles import tensors_of
from saekernels.sae.activations import JumpReLU, ReLU, TopK
from saekernels.sae.metadata import Metadata

NAME = "crosscoder (Llamascopium)"
FILES = 'config.json of sae_type "crosscoder" + sae_weights.safetensors or .pt'
_NORM = "dataset_average_activation_norm."
_THRESHOLD = "activation_function.log_jumprelu_threshold"
# How the weights came about, how they are computed with, and what was read.
_KNOWN = """
    sae_type d_model expansion_factor d_sae use_decoder_bias act_fn norm_activation sparsity_include_decoder_norm top_k
    sae_pretrained_name_or_path strict_loading use_triton_kernel sparsity_threshold_for_triton_spmm_kernel
    jumprelu_threshold_window hook_points device dtype
""".split()  # noqa: SIM905


def claims(found: Mapping[str, Any]) -> bool:
    """Whether a file's entries are of this format."""
    return isinstance(found.get("W_E"), Tensor) and found["W_E"].dim() == 3 and "W_D" in found


def read(path: Path, found: Mapping[str, Any], asked: Asked) -> Crosscoder:
    """The crosscoder of a file."""
    config = config_beside(path, "config.json")
    if config is None or config.get("sae_type") != "crosscoder":
        got = "no config.json" if config is None else f"sae_type {config.get('sae_type')!r:.40}"
        raise FormatError(f'{path}: got {got} beside it, need one of sae_type "crosscoder"')
    refuse_alphas(asked, path)
    tensors = tensors_of(path, found)
    heads, d, latents = tensors.shape("W_E", 3)
    state = {
        "W_enc": tensors.take("W_E", heads, d, latents).permute(2, 0, 1),
        "W_dec": tensors.take("W_D", heads, latents, d).transpose(0, 1),
        "b_enc": tensors.take("b_E", heads, latents),
        "b_dec": tensors.take("b_D", heads, d),
    }
    state["b_enc"] = state["b_enc"].sum(0, dtype=of_thresholds(state)).to(state["b_enc"].dtype)
    refuse_size(config, "d_model", d, path)
    factor = config.get("expansion_factor")
    if isinstance(factor, int | float) and int(d * factor) != latents:
        raise FormatError(f"{config.path}: 'expansion_factor' is {factor} for {d} dimensions, but there are {latents}")
    for name in ("sparsity_include_decoder_norm", "use_decoder_bias"):
        if not boolean(config, name, config.path, True):
            raise FormatError(f"{config.path}: {name!r} is false, which no crosscoder of its tool has")
    points = _hook_points(config, heads)
    activation, threshold = _activation(config, tensors, latents)
    scale = _scales(config, tensors, points, d, asked, path)
    tensors.done()
    refuse_unknown(config, _KNOWN)
    options = {} if scale is None else {"input_scale": scale}
    other = config.kept("norm_activation")
    metadata = Metadata(NAME, other=other)
    return build(path, state, activation, metadata, threshold=threshold, sites=points, norms="per_head", **options)


def _hook_points(config: Config, heads: int) -> list[str]:
    points = config.get("hook_points")
    if not isinstance(points, list) or len(points) != heads or not all(isinstance(one, str) for one in points):
        raise FormatError(f"{config.path}: 'hook_points' is {points!r:.80}, need {heads} names, one for each head")
    return points


def _activation(config: Config, tensors: Tensors, latents: int) -> tuple[HeadActivation, Tensor | None]:
    function = str(config.get("act_fn", "relu")).lower()
    if function == "jumprelu":
        log = tensors.take(_THRESHOLD, latents)
        return JumpReLU(), log.to(torch.promote_types(log.dtype, torch.float32)).exp()
    if function == "topk":
        return TopK(integer(config, "top_k", config.path, 50)), None
    if function == "relu":
        return ReLU(), None
    raise FormatError(
        f"{config.path}: 'act_fn' is {function!r:.40}, need relu, topk or jumprelu; it selects over a batch"
    )


def _scales(
    config: Config, tensors: Tensors, points: list[str], d: int, asked: Asked, path: Path
) -> list[float] | None:
    """What each head's input is multiplied by; None where activations are taken as they are."""
    norm = config.get("norm_activation", "dataset-wise")
    means = [tensors.number(_NORM + point) for point in points]
    tensors.drop(*(_NORM + point for point in points))
    if norm == "inference":
        # Its file has norms all the same, of whatever values.
        refuse_scales(asked, path)
        return None
    if norm != "dataset-wise":
        raise FormatError(f"{config.path}: 'norm_activation' is {norm!r:.40}, need dataset-wise or inference")
    if any(mean is None for mean in means):
        if asked.input_scale is None:
            raise FormatError(
                f"input_scale: {path} was trained on scaled activations, but their mean norms are in no file; need "
                f"{len(points)} numbers, sqrt(d) / mean norm of each head"
            )
        return list(asked.input_scale)
    refuse_scales(asked, path)
    known = [mean for mean in means if mean is not None]
    if not all(0 < mean < math.inf for mean in known):
        raise FormatError(f"{path}: its mean norms are {known}, need positive numbers")
    return [math.sqrt(d) / mean for mean in known]
