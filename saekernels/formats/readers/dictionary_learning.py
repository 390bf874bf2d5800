"""dictionary_learning: ae.pt, with its config.json where there is one.

What a file is, its tensors say: configs are wrong about it (an AprilUpdate trainer writes dict_class "AutoEncoder" for
an AutoEncoderNew). The config tells what tensors cannot: k of older TopK files, and top-k from a threshold.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.files import FormatError, Tensors, integer, read_config, refuse_scale
from saekernels.formats.pickles import tensors_of
from saekernels.sae.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK

NAME = "dictionary_learning"
FILES = "ae.pt (+ config.json)"


def claims(found: Mapping[str, Any]) -> bool:
    """Whether a torch file's dictionary is of this format."""
    linear = "encoder.weight" in found and "decoder.weight" in found
    return (linear or {"W_enc", "W_dec", "threshold"} <= set(found)) or {"step", "ae"} <= set(found)


def read(path: Path, found: Mapping[str, Any], input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The dictionary of a file that `read_pt` has read."""
    refuse_scale(input_scale, path)
    if {"step", "ae"} <= set(found):
        raise FormatError(f"{path}: the state of an interrupted training run, need a finished ae.pt")
    tensors = tensors_of(path, found)
    trainer = _trainer(path)
    if "r_mag" in tensors:
        state, activation, pre_bias = _gated(tensors)
    elif "bias" in tensors:
        state, activation, pre_bias = _linear(tensors, "bias"), ReLU(), "b_dec"
    elif "decoder.bias" in tensors:
        state, activation, pre_bias = _linear(tensors, "decoder.bias"), ReLU(), "none"
    elif "W_enc" in tensors and "k" not in tensors and tensors.dimensions("threshold") == 1:
        state, activation, pre_bias = _matrices(tensors), JumpReLU(), "none"
        state["threshold"] = tensors.take("threshold", len(state["b_enc"]))
    else:
        return _top_k(path, tensors, trainer, k)
    if k is not None:
        raise FormatError(f"k: got {k}, but {path} is {activation.name}, which has none")
    tensors.done()
    return build(path, state, activation, pre_bias=pre_bias)


def _trainer(path: Path) -> Mapping[str, Any]:
    beside = path.parent / "config.json"
    config = read_config(beside) if beside.is_file() else {}
    trainer = config.get("trainer", {})
    if not isinstance(trainer, Mapping):
        raise FormatError(f"{beside}: 'trainer' is {type(trainer).__name__}, need an object")
    return trainer


def _linear(tensors: Tensors, bias: str) -> dict[str, Tensor]:
    n_latents, d = tensors.shape("encoder.weight")
    return {
        "W_enc": tensors.take("encoder.weight", n_latents, d),
        "b_enc": tensors.take("encoder.bias", n_latents),
        "W_dec": tensors.take("decoder.weight", d, n_latents).T,
        "b_dec": tensors.take(bias, d),
    }


def _matrices(tensors: Tensors) -> dict[str, Tensor]:
    d, n_latents = tensors.shape("W_enc")
    return {
        "W_enc": tensors.take("W_enc", d, n_latents).T,
        "b_enc": tensors.take("b_enc", n_latents),
        "W_dec": tensors.take("W_dec", n_latents, d),
        "b_dec": tensors.take("b_dec", d),
    }


def _gated(tensors: Tensors) -> tuple[dict[str, Tensor], Activation, str]:
    n_latents, d = tensors.shape("encoder.weight")
    state = {
        "W_enc": tensors.take("encoder.weight", n_latents, d),
        "W_dec": tensors.take("decoder.weight", d, n_latents).T,
        "b_dec": tensors.take("decoder_bias", d),
        "r_mag": tensors.take("r_mag", n_latents),
        "b_gate": tensors.take("gate_bias", n_latents),
        "b_mag": tensors.take("mag_bias", n_latents),
    }
    return state, Gated(), "b_dec"


def _top_k(path: Path, tensors: Tensors, trainer: Mapping[str, Any], k: int | None) -> Checkpoint:
    """TopK, BatchTopK and Matryoshka, which share their tensors: what the class is, the config has to say."""
    matryoshka = "group_sizes" in tensors
    kind = "MatryoshkaBatchTopKSAE" if matryoshka else str(trainer.get("dict_class", ""))
    if kind not in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        raise FormatError(
            f"{path}: TopK and BatchTopK have the same tensors; need a config.json beside it with trainer.dict_class, "
            f"got {kind!r:.60}"
        )
    state = _matrices(tensors) if matryoshka else _linear(tensors, "b_dec")
    own = tensors.number("k")
    threshold = tensors.number("threshold")
    tensors.drop("group_sizes", "k", "threshold")
    tensors.done()
    if kind == "AutoEncoderTopK":
        told = own if own is not None else trainer.get("k", k)
        if k is not None and told != k:
            raise FormatError(f"k: got {k}, but {path} has {told!r:.40}")
        return build(path, state, TopK(integer({"k": int(told) if told else told}, "k", path)), pre_bias="b_dec")
    if k is not None:
        raise FormatError(f"k: got {k}, but {path} is a {kind}, which has a threshold instead")
    if threshold is None or threshold < 0:
        warnings.warn(
            f"{path}: its threshold was never set ({threshold}), so every positive latent is active, as there",
            stacklevel=4,
        )
        return build(path, state, ReLU(), pre_bias="b_dec")
    state["threshold"] = state["b_enc"].new_tensor(threshold)
    return build(path, state, BatchTopK(float(own) if own else None), pre_bias="b_dec")
