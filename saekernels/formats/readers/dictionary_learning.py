"""dictionary_learning: ae.pt, with its config.json where there is one.

What a file is, its tensors say, and the config has to agree (an AprilUpdate trainer writes dict_class "AutoEncoder" for
an AutoEncoderNew). The config tells what tensors cannot: k of older TopK files, top-k from a threshold, and whether the
module's input or output was trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekernels.formats.checkpoint import Checkpoint, build, of_thresholds
from saekernels.formats.config import Config, integer, read_json, told
from saekernels.formats.files import FormatError, Tensors, refuse_scale
from saekernels.formats.pickles import tensors_of
from saekernels.sae.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from saekernels.sae.metadata import Metadata

NAME = "dictionary_learning"
FILES = "ae.pt (+ config.json)"
# Of the trainer and of its buffer of activations: how the weights came about.
_WITHOUT_EFFECT = """
    trainer_class lr steps warmup_steps decay_start sparsity_warmup_steps resample_steps seed device wandb_name
    l1_penalty auxk_alpha top_k_aux threshold_beta threshold_start_step k_anneal_steps group_fractions
    group_weights group_sizes target_l0 bandwidth sparsity_penalty p_start p_end anneal_start anneal_end
    sparsity_function sparsity_queue_length n_sparsity_updates initial_sparsity_penalty annealed_penalty
    loss_type kl entropy dead_feature_threshold norm_factor ghost use_autocast
""".split()  # noqa: SIM905
_OF_THE_BUFFER = ("n_ctxs", "refresh_batch_size", "out_batch_size", "device", "remove_bos", "add_special_tokens")
# What the class of a file with certain tensors is called; by any other of these names it would not load there.
_CLASSES = {
    "gated": ("GatedAutoEncoder",),
    "bias": ("AutoEncoder",),
    "decoder.bias": ("AutoEncoderNew", "AutoEncoder"),
    "jumprelu": ("JumpReluAutoEncoder",),
    "groups": ("MatryoshkaBatchTopKSAE", "MatroyshkaBatchTopKSAE"),  # as older versions spell it
    "top-k": ("AutoEncoderTopK", "BatchTopKSAE"),
}


def claims(found: Mapping[str, Any]) -> bool:
    """Whether a torch file's dictionary is of this format."""
    linear = "encoder.weight" in found and "decoder.weight" in found
    return (linear or {"W_enc", "W_dec", "threshold"} <= set(found)) or {"step", "ae"} <= set(found)


def sure(path: Path, found: Mapping[str, Any]) -> bool:
    """Whether a file that `claims` is this tool's for certain: its tensors have the tool's own names, or its name has.

    An encoder and a decoder of torch.nn.Linear, or four matrices and vectors with a threshold, could be anyone's.
    """
    names = {name for name, value in found.items() if isinstance(value, Tensor)}
    anyones = ({"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"},
               {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"})  # fmt: skip
    return path.name == "ae.pt" or names not in anyones or len(_config(path).inner("trainer")) > 0


def read(path: Path, found: Mapping[str, Any], input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The dictionary of a file that `read_pt` has read."""
    refuse_scale(input_scale, path)
    if {"step", "ae"} <= set(found):
        raise FormatError(f"{path}: the state of an interrupted training run, need a finished ae.pt")
    tensors = tensors_of(path, found)
    if 3 in (tensors.dimensions("encoder.weight"), tensors.dimensions("decoder.weight")):
        raise FormatError(
            f"{path}: a crosscoder, which reads and writes several activations and is no single SAE; "
            "saekernels.load_crosscoder reads it"
        )
    config = _config(path)
    trainer = config.inner("trainer")
    kind = _kind(tensors)
    _check_class(path, trainer, kind)
    if kind in ("groups", "top-k"):
        return _top_k(path, tensors, config, trainer, k)
    for where, given in (("k", k), (f"{trainer.path}: 'k'", trainer.get("k"))):
        if given is not None:
            raise FormatError(
                f"{where}: got {given!r:.40}, but {path} has no k: its tensors are of {_CLASSES[kind][0]}"
            )
    if kind == "gated":
        state, activation, pre_bias = _gated(tensors)
    elif kind == "jumprelu":
        state, activation, pre_bias = _matrices(tensors), JumpReLU(), "none"
        state["threshold"] = tensors.take("threshold", len(state["b_enc"]))
    else:
        state, activation, pre_bias = _linear(tensors, kind), ReLU(), "b_dec" if kind == "bias" else "none"
    tensors.done()
    metadata = _metadata(path, config, trainer, state)
    return build(path, state, activation, metadata, pre_bias=pre_bias)


def _kind(tensors: Tensors) -> str:
    """A key of _CLASSES, which the names of the tensors tell."""
    if "r_mag" in tensors:
        return "gated"
    if "bias" in tensors or "decoder.bias" in tensors:
        return "bias" if "bias" in tensors else "decoder.bias"
    if "W_enc" in tensors and "k" not in tensors and tensors.dimensions("threshold") == 1:
        return "jumprelu"
    return "groups" if "group_sizes" in tensors else "top-k"


def _check_class(path: Path, trainer: Config, kind: str) -> None:
    """FormatError where the config names a class that the tensors are not of, or none of the tool's."""
    named = trainer.get("dict_class")
    if named is None or named in _CLASSES[kind]:
        return
    known = [name for names in _CLASSES.values() for name in names]
    if named not in known:
        raise FormatError(
            f"{trainer.path}: 'dict_class' is {named!r:.40}, need one of {', '.join(dict.fromkeys(known))}"
        )
    own = " or ".join(_CLASSES[kind])
    raise FormatError(f"{trainer.path}: 'dict_class' is {named!r}, but the tensors of {path.name} are of {own}")


def _config(path: Path) -> Config:
    """The config beside a file; of checkpoints of a run, that of the run."""
    beside = next((p for f in (path.parent, path.parent.parent) if (p := f / "config.json").is_file()), None)
    return read_json(beside) if beside else Config(path, {})


def _metadata(path: Path, config: Config, trainer: Config, state: Mapping[str, Tensor]) -> Metadata:
    """What the config says of the model. Raises FormatError where its sizes are not those of the tensors."""
    n_latents, d = state["W_enc"].shape
    buffer = config.inner("buffer")
    sizes = ((trainer, "activation_dim", d), (trainer, "dict_size", n_latents), (buffer, "d_submodule", d))
    for fields, key, size in sizes:
        if fields.get(key) not in (None, size):
            raise FormatError(f"{config.path}: {key!r} is {fields[key]!r:.40}, but {path.name} has {size}")
    trainer.get("k")
    module, io, context = told(trainer, "submodule_name", str), buffer.get("io", "out"), told(buffer, "ctx_len", int)
    if io not in ("in", "out", "in_and_out"):
        raise FormatError(f"{config.path}: 'io' is {io!r:.40}, need 'in', 'out' or 'in_and_out'")
    model, other = told(trainer, "lm_name", str), trainer.kept("layer")
    ignored = (*trainer.unknown(_WITHOUT_EFFECT), *buffer.unknown(_OF_THE_BUFFER))  # last: all that is known was read
    return Metadata(
        NAME,
        model=model,
        reads=f"{module}@input" if module and io != "out" else module,
        writes=f"{module}@input" if module and io == "in" else module,
        context=context,
        other={**other, **({"io": io} if io != "out" else {})},
        ignored=ignored,
    )


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


def _top_k(path: Path, tensors: Tensors, config: Config, trainer: Config, k: int | None) -> Checkpoint:
    """TopK, BatchTopK and Matryoshka, which share their tensors: what the class is, the config has to say."""
    matryoshka = "group_sizes" in tensors
    kind = "MatryoshkaBatchTopKSAE" if matryoshka else str(trainer.get("dict_class", ""))
    if not matryoshka and kind not in _CLASSES["top-k"]:
        raise FormatError(
            f"{path}: TopK and BatchTopK have the same tensors; need a config.json beside it with trainer.dict_class, "
            f"got {kind!r:.60}"
        )
    state = _matrices(tensors) if matryoshka else _linear(tensors, "b_dec")
    own = tensors.number("k")
    threshold = tensors.number("threshold")
    groups = tensors.total("group_sizes")
    if groups is not None and groups != len(state["W_enc"]):
        raise FormatError(f"{path}: its group_sizes sum to {groups}, but it has {len(state['W_enc'])} latents")
    tensors.drop("group_sizes", "k", "threshold")
    tensors.done()
    metadata = _metadata(path, config, trainer, state)
    if own is not None and trainer.get("k", own) != own:
        raise FormatError(f"{path}: its k is {own:g}, but its config.json says {trainer['k']!r:.40}")
    if kind == "AutoEncoderTopK":
        said = own if own is not None else trainer.get("k", k)
        if k is not None and said != k:
            raise FormatError(f"k: got {k}, but {path} has {said!r:.40}")
        count = integer({"k": int(said) if said else said}, "k", path)
        return build(path, state, TopK(count), metadata, pre_bias="b_dec")
    if k is not None:
        raise FormatError(f"k: got {k}, but {path} is a {kind}, which has a threshold instead")
    if threshold is None or threshold < 0:
        warnings.warn(
            f"{path}: its threshold was never set ({threshold}), so every positive latent is active, as there",
            stacklevel=4,
        )
        return build(path, state, ReLU(), metadata, pre_bias="b_dec")
    state["threshold"] = torch.tensor(threshold, dtype=of_thresholds(state))
    return build(path, state, BatchTopK(float(own) if own else None), metadata, pre_bias="b_dec")
