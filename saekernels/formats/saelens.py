"""SAELens: cfg.json + sae_weights.safetensors, the layout of 6.0 and later and the flat one before it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekernels.activations import (
    AbsTopK,
    Activation,
    BatchTopK,
    ConstantNorm,
    Gated,
    JumpReLU,
    LayerNorm,
    Normalization,
    ReLU,
    Scale,
    TopK,
)
from saekernels.atomic import write_whole
from saekernels.formats.files import FormatError, Tensors, integer, read_config, tensors_to_bytes
from saekernels.sae import SAE

NAME = "SAELens"
WEIGHTS = "sae_weights.safetensors"

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
DTYPES = {
    name: getattr(torch, name.removeprefix("torch."))
    for base in ("float32", "bfloat16", "float16", "float64")
    for name in (base, f"torch.{base}")
}


def matches(folder: Path) -> bool:
    """Whether the folder holds a SAELens checkpoint."""
    return (folder / WEIGHTS).is_file()


def read(folder: Path, input_scale: float | None = None) -> SAE:
    """The SAE or transcoder of a SAELens folder. Their W_enc is [d_in, F]; ours is its transpose."""
    path = folder / "cfg.json"
    config = _since_6_0(read_config(path))
    architecture = config.get("architecture", "standard")
    if architecture not in ARCHITECTURES:
        raise FormatError(f"{path}: 'architecture' is {architecture!r}, need one of {list(ARCHITECTURES)}")
    kind, transcoder, skip = ARCHITECTURES[architecture]
    d_in, n_latents = integer(config, "d_in", path), integer(config, "d_sae", path)
    d_out = integer(config, "d_out", path) if transcoder else d_in
    activation = kind(integer(config, "k", path)) if kind in (TopK, AbsTopK) else kind()
    try:
        sae = SAE(
            d_in,
            n_latents,
            activation,
            d_out=d_out,
            pre_bias="b_dec" if config.get("apply_b_dec_to_input", True) and not transcoder else "none",
            normalization=_normalization(config, path, input_scale),
            rescale_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
            skip=skip,
            device="meta",
        )
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from error
    state = _state(Tensors(folder / WEIGHTS), activation, d_in, n_latents, d_out, skip)
    dtype = DTYPES.get(str(config.get("dtype")), state["W_enc"].dtype)
    # Half weights keep float32 thresholds, as in formats.load.
    kept = {name: value.float() if name == "threshold" else value.to(dtype) for name, value in state.items()}
    if dtype == torch.float64 and "threshold" in kept:
        kept["threshold"] = state["threshold"].double()
    sae.load_state_dict({name: torch.nn.Parameter(value) for name, value in kept.items()}, assign=True)
    return sae


def _since_6_0(config: dict[str, Any]) -> dict[str, Any]:
    """The config in the names that SAELens uses since 6.0: before, TopK was an activation function of `standard`."""
    kwargs = config.get("activation_fn_kwargs")
    function = config.get("activation_fn", config.get("activation_fn_str"))
    config = dict(config)
    if function == "topk" and isinstance(kwargs, dict) and kwargs.get("k") is not None:
        config["architecture"], config["k"] = "topk", kwargs["k"]
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = "expected_average_only_in" if config["normalize_activations"] else "none"
    return config


def _normalization(config: dict[str, Any], path: Path, input_scale: float | None) -> Normalization | None:
    kind = config.get("normalize_activations") or "none"
    kinds = {"none": None, "layer_norm": LayerNorm(), "constant_norm_rescale": ConstantNorm()}
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


def _state(
    tensors: Tensors, activation: Activation, d_in: int, n_latents: int, d_out: int, skip: bool
) -> dict[str, Tensor]:
    state = {
        "W_enc": tensors.take("W_enc", d_in, n_latents).T.contiguous(),
        "W_dec": tensors.take("W_dec", n_latents, d_out),
        "b_dec": tensors.take("b_dec", d_out),
    }
    vectors = ["b_gate", "b_mag", "r_mag"] if isinstance(activation, Gated) else ["b_enc"]
    if isinstance(activation, JumpReLU):
        vectors.append("threshold")
    for name in vectors:
        state[name] = tensors.take(name, n_latents)
    if skip:
        state["W_skip"] = tensors.take("W_skip", d_out, d_in)
    if "scaling_factor" in tensors:
        # Files from before 6.0: a factor on the codes in the decoder, ones unless it was fine-tuned.
        factor = tensors.take("scaling_factor", n_latents)
        state["W_dec"] = state["W_dec"] * factor[:, None].to(state["W_dec"].dtype)
    tensors.done()
    return state


def write(sae: SAE, folder: Path, metadata: dict[str, object]) -> None:
    """See `saekernels.save`."""
    architecture = _architecture(sae)
    tensors = _folded(sae)
    config: dict[str, object] = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.n_latents,
        "dtype": str(tensors["W_enc"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.pre_bias_kind == "b_dec",
        "normalize_activations": {LayerNorm: "layer_norm", ConstantNorm: "constant_norm_rescale"}.get(
            type(sae.normalization), "none"
        ),
        "reshape_activations": "none",
        # Without a version SAELens takes the file for one from before 6.0 and drops the metadata.
        "metadata": {"sae_lens_version": "6.0.0", **metadata},
    }
    if isinstance(sae.activation, TopK | AbsTopK):
        config["k"] = sae.activation.k
    if isinstance(sae.activation, TopK):
        config["rescale_acts_by_decoder_norm"] = sae.rescale_by_decoder_norm
    if "transcoder" in architecture:
        config["d_out"] = sae.d_out
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, tensors_to_bytes(tensors))
    write_whole(folder / "cfg.json", (json.dumps(config, indent=2) + "\n").encode())


def _architecture(sae: SAE) -> str:
    kind = JumpReLU if isinstance(sae.activation, BatchTopK) else type(sae.activation)
    skip = sae.W_skip is not None
    transcoder = skip or sae.d_in != sae.d_out
    name = next((name for name, row in ARCHITECTURES.items() if row == (kind, transcoder, skip)), None)
    if name is None or (sae.rescale_by_decoder_norm and kind is not TopK) or (skip and sae.pre_bias_kind != "none"):
        raise FormatError(f"sae: got {sae}, need an architecture of SAELens: one of {list(ARCHITECTURES)}")
    return name


def _folded(sae: SAE) -> dict[str, Tensor]:
    """The tensors of the file, an input scale and a separate pre-bias folded into them."""
    names = ("W_dec", "b_dec", "b_enc", "threshold", "W_skip", "b_gate", "b_mag", "r_mag")
    tensors = {name: value.detach() for name in names if (value := getattr(sae, name, None)) is not None}
    W_enc = sae.W_enc.detach()
    if sae.b_pre is not None:
        shift = W_enc @ sae.b_pre.detach()
        for name in ("b_enc", "b_gate"):
            if name in tensors:
                tensors[name] = tensors[name] - shift
        if "b_mag" in tensors:
            tensors["b_mag"] = tensors["b_mag"] - tensors["r_mag"].exp() * shift
    if isinstance(sae.normalization, Scale):
        factor = sae.normalization.factor
        W_enc = W_enc * factor
        tensors["W_dec"], tensors["b_dec"] = tensors["W_dec"] / factor, tensors["b_dec"] / factor
    if isinstance(sae.activation, BatchTopK):
        tensors["threshold"] = tensors["threshold"].expand(sae.n_latents)
    return {"W_enc": W_enc.T, **tensors}
