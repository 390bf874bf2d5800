"""What Llama Scope and Llamascopium compute: scales of inputs and outputs, what is subtracted, the activation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekernels.formats.checkpoint import of_thresholds
from saekernels.formats.config import Config, boolean, integer
from saekernels.formats.files import FormatError, Tensors
from saekernels.sae.activations import Activation, JumpReLU, ReLU, TopK

DATASET_WISE = ("dataset-wise", None)


def pre_bias(config: Config, state: dict[str, Tensor], ratio: float) -> str:
    """Whether the decoder's bias is taken from the scaled input: of a transcoder, as a bias of its own.

    lm_saes: x * s_in - b_D before the encoder, if `use_decoder_bias` and `apply_decoder_bias_to_pre_encoder`.
    """
    apply = boolean(config, "apply_decoder_bias_to_pre_encoder", config.path)
    if not (apply and boolean(config, "use_decoder_bias", config.path, True)):
        return "none"
    if state["W_enc"].shape[1] != state["b_dec"].shape[0]:
        raise FormatError(f"{config.path}: 'apply_decoder_bias_to_pre_encoder' is true, need equal widths in and out")
    if ratio == 1.0:
        return "b_dec"
    state["b_pre"] = state["b_dec"].clone()
    return "separate"


def scales(config: Mapping[str, Any], norms: Mapping[str, float], d: int, path: Path) -> tuple[float | None, float]:
    """(s_in or None, s_in / s_out): an SAE with Scale(s_in) divides its output by s_in, where s_out is meant."""
    if config.get("norm_activation") not in DATASET_WISE:
        return None, 1.0
    given = config.get("dataset_average_activation_norm")
    known = {**norms, **(given if isinstance(given, Mapping) else {})}
    try:
        inward = float(known["in"])
        outward = float(known.get("out", inward))
    except KeyError:
        return None, 1.0
    except (TypeError, ValueError):
        raise FormatError(f"{path}: 'dataset_average_activation_norm' is {known!r:.60}, need numbers") from None
    if not (0 < inward < math.inf and 0 < outward < math.inf):
        raise FormatError(f"{path}: 'dataset_average_activation_norm' is {known!r:.60}, need positive numbers")
    return math.sqrt(d) / inward, outward / inward


def activation(
    config: Mapping[str, Any], tensors: Tensors, state: dict[str, Tensor], path: Path, scale: float | None
) -> Activation:
    """What is selected; thresholds, in units of the scaled input, into the state. scale: None where there is none."""
    n_latents = len(state["b_enc"])
    function = str(config.get("act_fn", "jumprelu")).lower()
    for name in ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold"):
        if name in tensors:
            state["threshold"] = tensors.take(name, n_latents).to(of_thresholds(state)).exp()
            if function not in ("jumprelu", "batchtopk"):
                raise FormatError(f"{path}: 'act_fn' is {function!r:.40}, but {tensors.path.name} has {name!r}")
            function = "jumprelu"
    raw = config.get("jump_relu_threshold")
    positive = isinstance(raw, int | float) and not isinstance(raw, bool) and raw > 0
    if function == "topk" and not positive:
        return TopK(integer(config, "top_k", path))
    if function == "relu":
        return ReLU()
    if function not in ("jumprelu", "topk"):  # lm_saes makes JumpReLU of a TopK with a threshold when it loads one
        raise FormatError(f"{path}: 'act_fn' is {function!r:.40} without thresholds; it selects over a whole batch")
    if "threshold" not in state:
        value = float(raw) * (scale or 1.0) if isinstance(raw, int | float) else math.inf
        if isinstance(raw, bool) or not 0 <= value <= torch.finfo(torch.float32).max:
            need = "a number of at least 0, or thresholds in the file"
            raise FormatError(f"{path}: 'jump_relu_threshold' is {raw!r:.40}, need {need}")
        state["threshold"] = torch.full((n_latents,), value, dtype=of_thresholds(state))
    return JumpReLU()
