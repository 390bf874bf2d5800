"""Crosscoders of dictionary_learning's fork (science-of-finetuning): a state dict, or a hub's model.safetensors.

What is selected, its tensors say (a `threshold`: BatchTopK); by which norms, `code_normalization_id`. The config has to
agree, and may hold the alphas of MIXED, which no tensor does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekernels.crosslayer.crosscoder import Crosscoder
from saekernels.formats.config import Config, told
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
from saekernels.sae.activations import BatchTopK, ReLU
from saekernels.sae.metadata import Metadata

NAME = "crosscoder (dictionary_learning)"
FILES = "a .pt, or model.safetensors, with encoder.weight [H, d, F] (+ config.json)"
_RULES = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
_NORMS = {"CROSSCODER": "sum", "SAE": "concatenated", "MIXED": "mixed", "NONE": "none", "DECOUPLED": "per_head"}
_STATISTICS = ("activation_mean", "activation_std", "activation_global_scale")
_ALPHAS = ("code_normalization_alpha_sae", "code_normalization_alpha_cc")
# How the weights came about, and what was read.
_KNOWN = """
    trainer_class dict_class lr steps auxk_alpha warmup_steps decay_start threshold_beta threshold_start_step top_k_aux
    seed activation_dim dict_size num_layers k k_target k_initial k_annealing_steps code_normalization device layer
    lm_name wandb_name submodule_name dict_class_kwargs target_rms l1_penalty resample_steps use_mse_loss
    same_init_for_all_layers norm_init_scale init_with_transpose encoder_layers num_decoder_layers latent_processor
    code_normalization_alpha_sae code_normalization_alpha_cc
""".split()  # noqa: SIM905
_CLASSES = ("CrossCoder", "BatchTopKCrossCoder")


def claims(found: Mapping[str, Any]) -> bool:
    """Whether a file's entries are of this format."""
    return isinstance(found.get("encoder.weight"), Tensor) and found["encoder.weight"].dim() == 3


def read(path: Path, found: Mapping[str, Any], asked: Asked) -> Crosscoder:
    """The crosscoder of a file."""
    refuse_scales(asked, path)
    tensors = tensors_of(path, found)
    config = _config(path)
    heads, d, latents = tensors.shape("encoder.weight", 3)
    if tensors.shape("decoder.weight", 3)[0] != heads or config.get("encoder_layers") not in (
        None,
        list(range(heads)),
    ):
        raise FormatError(f"{path}: its encoder reads some of the layers that it writes to, need all of them")
    if config.get("latent_processor"):
        raise FormatError(f"{config.path}: 'latent_processor' changes codes before they are decoded; not served")
    state = {
        "W_enc": tensors.take("encoder.weight", heads, d, latents).permute(2, 0, 1),
        "b_enc": tensors.take("encoder.bias", latents),
        "W_dec": tensors.take("decoder.weight", heads, latents, d).transpose(0, 1),
        "b_dec": tensors.take("decoder.bias", heads, d),
    }
    for key, size in (("activation_dim", d), ("dict_size", latents), ("num_layers", heads),
                      ("num_decoder_layers", heads)):  # fmt: skip
        refuse_size(config, key, size, path)
    rule = _rule(path, tensors, config)
    statistics = _statistics(path, tensors, heads, d)
    threshold, k = _threshold(path, tensors, config, rule, heads)
    tensors.done()
    refuse_unknown(config, _KNOWN)
    if threshold is None:
        # The norms weigh its loss alone.
        refuse_alphas(asked, path)
        return build(path, state, ReLU(), _metadata(config, rule), **statistics)
    if rule == "DECOUPLED" and statistics:
        raise FormatError(
            f"{path}: DECOUPLED codes with activation statistics, which its tool applies twice before it encodes and "
            "undoes once; not served"
        )
    if rule == "MIXED":
        statistics["alphas"] = _alphas(path, config, asked)
    else:
        refuse_alphas(asked, path)
    made = BatchTopK(k)
    return build(path, state, made, _metadata(config, rule), threshold=threshold, norms=_NORMS[rule], **statistics)


def _config(path: Path) -> Config:
    """A hub's config, or what a trainer's config says of the trainer; empty without either."""
    config = config_beside(path, "config.json")
    above = config_beside(path.parent, "config.json") if config is None else None
    if above is not None and "trainer" in above:
        config = above
    if config is None:
        return Config(path, {})
    if "trainer" in config:
        refuse_unknown(config, ("trainer", "buffer"))
        config = config.inner("trainer")
    if config.get("dict_class", _CLASSES[0]) not in _CLASSES:
        need = " or ".join(_CLASSES)
        raise FormatError(f"{config.path}: 'dict_class' is {config['dict_class']!r:.40}, need {need}")
    return config


def _rule(path: Path, tensors: Tensors, config: Config) -> str:
    """The code normalization, by the file's number or else the config's name; they have to agree."""
    number, name = tensors.number("code_normalization_id"), config.get("code_normalization")
    tensors.drop("code_normalization_id")
    named = None if name is None else str(name).upper()
    if named is not None and named not in _NORMS:
        raise FormatError(f"{config.path}: 'code_normalization' is {name!r:.40}, need one of {', '.join(_NORMS)}")
    if number is None:
        if named is None:
            warnings.warn(f"{path}: no 'code_normalization_id'; CROSSCODER, as its tool takes it", stacklevel=4)
        return named or "CROSSCODER"
    if number not in _RULES:
        raise FormatError(f"{path}: its code_normalization_id is {number:g}, need one of {sorted(_RULES)}")
    rule = _RULES[int(number)]
    if named not in (None, rule):
        raise FormatError(f"{config.path}: 'code_normalization' is {name!r}, but {path.name} has {rule}")
    return rule


def _alphas(path: Path, config: Config, asked: Asked) -> tuple[float, float]:
    """Of MIXED: in no tensor; in the config, perhaps, else asked for."""
    said = tuple(config.get(name) for name in _ALPHAS)
    if asked.alphas is not None:
        if None not in said and tuple(asked.alphas) != said:
            raise FormatError(f"alphas: got {asked.alphas}, but {config.path} says {said}")
        return asked.alphas
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in said):
        raise FormatError(
            f"alphas: {path} weighs codes by MIXED norms, whose two factors are in no file; need (of the concatenated "
            "norm, of the sum), which are (1.0, 0.1) where its trainer was not told otherwise"
        )
    return float(said[0]), float(said[1])  # type: ignore[arg-type]


def _statistics(path: Path, tensors: Tensors, heads: int, d: int) -> dict[str, Any]:
    """How inputs are transformed: (x - mean) * scale of each head, undone by scale + 1e-8; where NaN, not at all."""
    tensors.drop("target_rms")
    there = [name for name in _STATISTICS if name in tensors]
    if there and len(there) < len(_STATISTICS):
        missing = ", ".join(sorted(set(_STATISTICS) - set(there)))
        raise FormatError(f"{path}: it has {', '.join(there)}, but no {missing}")
    if not there:
        return {}
    mean, std = (tensors.take(name, heads, d) for name in _STATISTICS[:2])
    scale = tensors.take(_STATISTICS[2], heads)
    if bool(mean.isnan().any() | std.isnan().any()):
        return {}
    wide = scale.to(torch.promote_types(scale.dtype, torch.float32))
    return {"input_mean": mean, "input_scale": wide, "output_scale": 1 / (wide + 1e-8)}


def _threshold(
    path: Path, tensors: Tensors, config: Config, rule: str, heads: int
) -> tuple[Tensor | None, float | None]:
    """(the thresholds, k) of BatchTopK, or (None, None) of a plain crosscoder."""
    named = config.get("dict_class")
    if "threshold" not in tensors:
        if "k" in tensors or named == _CLASSES[1]:
            raise FormatError(f"{path}: a BatchTopK crosscoder without a 'threshold'; it selects over a whole batch")
        return None, None
    if named == _CLASSES[0]:
        raise FormatError(f"{config.path}: 'dict_class' is {named!r}, but {path.name} has a threshold")
    threshold = tensors.take("threshold", *((heads,) if rule == "DECOUPLED" else ()))
    if not bool((threshold >= 0).all()):
        raise FormatError(
            f"{path}: its threshold is {threshold.tolist()}: -1 was never set, in a run that ended before "
            "threshold_start_step; need thresholds of at least 0"
        )
    k = tensors.number("k")
    tensors.drop("k")
    if k is not None and not 0 < k < math.inf:
        raise FormatError(f"{path}: its k is {k:g}, need a number above 0")
    if k is not None and config.get("k", k) != k:
        raise FormatError(f"{path}: its k is {k:g}, but its config says {config['k']!r:.40}")
    return threshold, k


def _metadata(config: Config, rule: str) -> Metadata:
    other = {**config.kept("layer", "submodule_name"), "code_normalization": rule}
    return Metadata(NAME, model=told(config, "lm_name", str), other=other)
