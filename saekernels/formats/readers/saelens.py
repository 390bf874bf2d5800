"""SAELens: cfg.json + sae_weights.safetensors, the layout of 6.0 and later and the flat one before it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.config import Config, boolean, integer
from saekernels.formats.files import FormatError, Tensors, read_safetensors, refuse_k
from saekernels.formats.looking import is_looking
from saekernels.formats.readers.saelens_config import (
    ARCHITECTURES,
    dtype_of,
    metadata_of,
    normalization_of,
    read_since_6_0,
)
from saekernels.sae.activations import AbsTopK, Activation, Gated, JumpReLU, Scale, TopK

NAME = "SAELens"
WEIGHTS = "sae_weights.safetensors"
FILES = f"cfg.json + {WEIGHTS}"


def find(path: Path) -> Path | None:
    """The folder of a SAELens checkpoint, given it or a file of the checkpoint."""
    if path.is_file() and path.name not in (WEIGHTS, "cfg.json"):
        return None
    folder = path if path.is_dir() else path.parent
    llama_scopes = any((folder / name).is_file() for name in ("config.json", "hyperparams.json"))
    other = llama_scopes and not (folder / "cfg.json").is_file()
    return folder if (folder / WEIGHTS).is_file() and not other else None


def read(folder: Path, input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The SAE or transcoder of a SAELens folder. Their W_enc is [d_in, F]; ours is its transpose."""
    path = folder / "cfg.json"
    if not path.is_file() and {"W_E", "encoder.weight"} & set(read_safetensors(folder / WEIGHTS)):
        need = "need hyperparams.json or config.json beside them"
        raise FormatError(f"{folder / WEIGHTS}: its tensors have the names of Llama Scope, {need}")
    config = read_since_6_0(path)
    refuse_k(k, path)
    architecture = config["architecture"]
    if architecture not in ARCHITECTURES:
        raise FormatError(f"{path}: 'architecture' is {architecture!r}, need one of {list(ARCHITECTURES)}")
    kind, transcoder, skip = ARCHITECTURES[architecture]
    d_in, n_latents = integer(config, "d_in", path), integer(config, "d_sae", path)
    d_out = integer(config, "d_out", path) if transcoder else d_in
    activation = kind(integer(config, "k", path)) if kind in (TopK, AbsTopK) else kind()
    reads_b_dec = boolean(config, "apply_b_dec_to_input", path, not transcoder)
    if reads_b_dec and transcoder:
        raise FormatError(f"{path}: 'apply_b_dec_to_input' is true, need false for {architecture!r}")
    rescaled = boolean(config, "rescale_acts_by_decoder_norm", path)
    if rescaled and not isinstance(activation, TopK | AbsTopK):
        raise FormatError(f"{path}: 'rescale_acts_by_decoder_norm' is true, need false for {architecture!r}")
    normalization = normalization_of(config, path, input_scale)
    if transcoder and normalization is not None and not isinstance(normalization, Scale):
        kind = config["normalize_activations"]
        raise FormatError(
            f"{path}: 'normalize_activations' is {kind!r} for a transcoder, need 'none': SAELens does not undo it there"
        )
    # Before the module: its sizes are then those of real tensors.
    state = _state(Tensors(folder / WEIGHTS), config, activation, d_in, n_latents, d_out, skip)
    dtype = dtype_of(config, path)
    return build(
        path,
        state,
        activation,
        metadata_of(config, path, NAME),
        pre_bias="b_dec" if reads_b_dec else "none",
        normalization=normalization,
        rescale_by_decoder_norm=rescaled,
        dtype=dtype,
    )


def _state(
    tensors: Tensors, config: Config, activation: Activation, d_in: int, n_latents: int, d_out: int, skip: bool
) -> dict[str, Tensor]:
    state = {
        "W_enc": tensors.take("W_enc", d_in, n_latents).T,
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
        # Files from before 6.0: a factor on the codes in the decoder, which counts where the config says so.
        factor = tensors.take("scaling_factor", n_latents)
        if boolean(config, "finetuning_scaling_factor", config.path):
            if not is_looking():
                state["W_dec"] = state["W_dec"] * factor[:, None].to(state["W_dec"].dtype)
        elif not torch.allclose(factor, torch.ones_like(factor)):
            raise FormatError(
                f"{config.path}: 'finetuning_scaling_factor' is not true, but the file has a scaling_factor other than "
                "1; SAELens refuses that as well"
            )
    tensors.done()
    return state
