"""What a plain state dict computes: the activation, and what is taken from the input, as configs and names say it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from saekernels.formats.checkpoint import of_thresholds
from saekernels.formats.config import Config, boolean, integer
from saekernels.formats.files import FormatError, Tensors
from saekernels.sae.activations import (
    Activation,
    BatchTopK,
    Gated,
    JumpReLU,
    LayerNorm,
    Normalization,
    ReLU,
    TopK,
)

_KINDS = {
    "relu": "relu", "standard": "relu", "vanilla": "relu", "topk": "topk", "batchtopk": "batchtopk",
    "jumprelu": "jumprelu", "gated": "gated",
}  # fmt: skip
# Fields that name the whole, and those that name its activation function.
_WHOLE, _FUNCTION = ("sae_type", "architecture"), ("activation", "activation_fn", "activation_fn_str")
_HOW = {
    "activation": "what is selected ('activation': 'relu', or 'topk' with 'k')",
    "bias": "whether b_dec is taken from the input ('apply_b_dec_to_input': true or false)",
}


@dataclass(frozen=True)
class Maths:
    """An activation, the pre-bias as `SAE` names it, and how the input is normalised."""

    activation: Activation
    pre_bias: str
    normalization: Normalization | None


def of(config: Config, tensors: Tensors, state: dict[str, Tensor], toy: bool, k: int | None, bias: bool) -> Maths:
    """What config, tensors and the caller say, which must be the same; FormatError names what nobody says.

    toy: the tensors are of ARENA's ToySAE, which takes b_dec from its input and selects by ReLU unless it has more.
    bias: whether the decoder's bias is in the file, and no 0 in its place.
    """
    normalization = _normalization(config)
    kind = _kind(config, tensors, state, toy, k)
    pre_bias = _pre_bias(config, state, toy, kind)
    if config.get("apply_b_dec_to_input") and not bias:
        raise FormatError(f"{config.path}: 'apply_b_dec_to_input' is true, but {tensors.path.name} has no 'b_dec'")
    if _is_bussmanns(config) and kind in ("topk", "batchtopk") and state["b_enc"].any():
        raise FormatError(f"{tensors.path}: its b_enc is not 0, which the tool of its config does not add for {kind!r}")
    unsaid = [_HOW[name] for name, value in (("activation", kind), ("bias", pre_bias)) if value is None]
    if kind is None or pre_bias is None:
        raise FormatError(
            f"{tensors.path}: no file says {' and '.join(unsaid)}; say it in a cfg.json beside it, by "
            "config=..., or, where a known tool wrote it, by format=..."
        )
    return Maths(_activation(kind, config, tensors, state, k), pre_bias, normalization)


def _is_bussmanns(config: Config) -> bool:
    """Whether a config is of Bart Bussmann's BatchTopK."""
    return {"sae_type", "act_size", "dict_size"} <= set(config)


def _normalization(config: Config) -> Normalization | None:
    """Bussmann's (x - mean) / (std + 1e-5), which he undoes; FormatError for what no tensor or field gives."""
    if _is_bussmanns(config) and boolean(config, "input_unit_norm", config.path):
        return LayerNorm()
    for name in ("normalize_activations", "input_unit_norm"):
        if config.get(name) not in (None, False, "none"):
            raise FormatError(f"{config.path}: {name!r} is {config[name]!r:.40}, need none for a plain state dict")
    return None


def _kind(config: Config, tensors: Tensors, state: dict[str, Tensor], toy: bool, k: int | None) -> str | None:
    """A value of _KINDS, or None where nothing says it."""
    inside = "gated" if "b_gate" in state else "jumprelu" if "threshold" in state else None
    inside = inside or ("batchtopk" if "threshold" in tensors else "topk" if "k" in tensors else None)
    whole, function = (_named(config, names) for names in (_WHOLE, _FUNCTION))
    outside = function if whole in (None, "relu") and function is not None else whole
    if whole not in (None, "relu", function) and function not in (None, "relu"):
        raise FormatError(f"{config.path}: it names both {whole!r} and {function!r}, need one activation")
    if outside is None and ({"enc_dtype", "dict_mult"} <= set(config) or (toy and inside is None)):
        outside = "relu"
    if outside == "topk" and inside == "batchtopk":  # a threshold that only its training needed
        warnings.warn(f"{tensors.path}: its 'threshold' is not used: {config.path.name} says 'topk'", stacklevel=7)
        inside = None
    if None not in (inside, outside) and inside != outside:
        raise FormatError(f"{tensors.path}: its tensors are of {inside!r}, but {config.path} says {outside!r}")
    return inside or outside or ("topk" if k is not None else None)


def _named(config: Config, names: tuple[str, ...]) -> str | None:
    """The one value of _KINDS that these fields give; FormatError where they give two."""
    said: dict[str, str] = {}
    for name, value in config.kept(*names).items():
        kind = _KINDS.get(str(value).lower().replace("_", "").replace("-", ""))
        if kind is None:
            raise FormatError(f"{config.path}: {name!r} is {value!r:.40}, need one of {sorted(_KINDS)}")
        said[kind] = name
    if len(said) > 1:
        both = " and ".join(f"{name!r} is {config[name]!r:.40}" for name in said.values())
        raise FormatError(f"{config.path}: {both}, need one activation")
    return next(iter(said), None)


def _pre_bias(config: Config, state: dict[str, Tensor], toy: bool, kind: str | None) -> str | None:
    """ "none", "b_dec" or "separate" as configs and names say; None where nothing does."""
    said = boolean(config, "apply_b_dec_to_input", config.path) if "apply_b_dec_to_input" in config else None
    bussmanns = _is_bussmanns(config)
    of_a_tool = toy or {"enc_dtype", "dict_mult"} <= set(config) or bussmanns
    if "b_pre" in state:
        if said is False:
            raise FormatError(
                f"{config.path}: 'apply_b_dec_to_input' is false, but the file has a b_dec_out beside b_dec"
            )
        return "separate"
    same_width = state["W_enc"].shape[1] == state["b_dec"].shape[0]
    if said and not same_width:
        raise FormatError(f"{config.path}: 'apply_b_dec_to_input' is true, need equal widths in and out")
    if bussmanns and kind == "jumprelu":
        of_a_tool = False  # his callers say it at every call, by use_pre_enc_bias
    if said is None and same_width and state["b_dec"].any():
        return "b_dec" if of_a_tool else None
    return "b_dec" if said else "none"  # where nobody says: no width, or no value, to take


def _activation(kind: str, config: Config, tensors: Tensors, state: dict[str, Tensor], k: int | None) -> Activation:
    said = config.get("k"), config.get("top_k")
    if kind == "topk":
        own = tensors.number("k")
        numbers = [int(own) if own is not None and own == own // 1 else own, *said, k]
        told = {repr(number): number for number in numbers if number is not None}
        tensors.drop("k", "threshold")
        if len(told) != 1:
            raise FormatError(f"{tensors.path}: k is {sorted(told) or 'in no file'}, need one value; give k")
        return TopK(integer({"k": told.popitem()[1]}, "k", config.path))
    if k is not None:
        raise FormatError(f"k: got {k}, but {tensors.path} is {kind!r}, which has none")
    if kind != "batchtopk" and (said[0] is not None or (said[1] is not None and "sae_type" not in config)):
        raise FormatError(f"{config.path}: it gives a k, but is of {kind!r}, which has none")
    if kind == "batchtopk":
        threshold = tensors.number("threshold")
        tensors.drop("threshold", "k")
        if threshold is None or threshold < 0:
            raise FormatError(f"{tensors.path}: BatchTopK selects over a whole batch, need its tensor 'threshold'")
        state["threshold"] = torch.tensor(threshold, dtype=of_thresholds(state))
        return BatchTopK()
    needed = {"jumprelu": "threshold", "gated": "b_gate"}.get(kind)
    if needed is not None and needed not in state:
        raise FormatError(f"{config.path}: it says {kind!r}, but {tensors.path.name} has no {needed!r}")
    kinds: dict[str, Activation] = {"relu": ReLU(), "jumprelu": JumpReLU(), "gated": Gated()}
    return kinds[kind]
