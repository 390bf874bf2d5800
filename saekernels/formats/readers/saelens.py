"""SAELens: cfg.json + sae_weights.safetensors, the layout of 6.0 and later and the flat one before it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from saekernels.files.atomic import write_all
from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.config import Config, boolean, integer
from saekernels.formats.files import FormatError, Tensors, json_to_bytes, refuse_k, tensors_to_bytes
from saekernels.formats.readers.saelens_config import (
    ARCHITECTURES,
    LAYER_NORM,
    dtype_of,
    metadata_of,
    normalization_of,
    read_since_6_0,
)
from saekernels.sae.activations import (
    AbsTopK,
    Activation,
    BatchTopK,
    ConstantNorm,
    Gated,
    JumpReLU,
    LayerNorm,
    Scale,
    TopK,
)
from saekernels.sae.module import SAE

NAME = "SAELens"
WEIGHTS = "sae_weights.safetensors"
FILES = f"cfg.json + {WEIGHTS}"


def find(path: Path) -> Path | None:
    """The folder of a SAELens checkpoint, given it or a file of the checkpoint."""
    if path.is_file() and path.name not in (WEIGHTS, "cfg.json"):
        return None
    folder = path if path.is_dir() else path.parent
    other = (folder / "config.json").is_file() and not (folder / "cfg.json").is_file()  # Llama Scope's
    return folder if (folder / WEIGHTS).is_file() and not other else None


def read(folder: Path, input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The SAE or transcoder of a SAELens folder. Their W_enc is [d_in, F]; ours is its transpose."""
    path = folder / "cfg.json"
    config = read_since_6_0(path)
    refuse_k(k, path)
    architecture = config["architecture"]
    if architecture not in ARCHITECTURES:
        raise FormatError(f"{path}: 'architecture' is {architecture!r}, need one of {list(ARCHITECTURES)}")
    kind, transcoder, skip = ARCHITECTURES[architecture]
    d_in, n_latents = integer(config, "d_in", path), integer(config, "d_sae", path)
    d_out = integer(config, "d_out", path) if transcoder else d_in
    activation = kind(integer(config, "k", path)) if kind in (TopK, AbsTopK) else kind()
    reads_b_dec = boolean(config, "apply_b_dec_to_input", path, True) and not transcoder
    rescaled = boolean(config, "rescale_acts_by_decoder_norm", path)
    normalization = normalization_of(config, path, input_scale)
    if transcoder and normalization is not None and input_scale is None:  # which SAELens does not undo in the output
        raise FormatError(f"{path}: 'normalize_activations' is {config['normalize_activations']!r} of a transcoder")
    # Before the module: its sizes are then those of real tensors.
    state = _state(Tensors(folder / WEIGHTS), config, activation, d_in, n_latents, d_out, skip)
    dtype = dtype_of(config, path) or state["W_enc"].dtype
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
            state["W_dec"] = state["W_dec"] * factor[:, None].to(state["W_dec"].dtype)
        elif not torch.equal(factor, torch.ones_like(factor)):
            warnings.warn(
                f"{config.path}: 'finetuning_scaling_factor' is not true, so the file's scaling_factor is not used, "
                "as in SAELens",
                stacklevel=5,
            )
    tensors.done()
    return state


def write(sae: SAE, folder: Path, metadata: dict[str, object]) -> None:
    """See `saekernels.save`."""
    architecture = _architecture(sae)
    if any(value.is_meta for value in (*sae.parameters(), *sae.buffers())):
        raise FormatError("sae: its weights are on the meta device, need weights that hold values")
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
    files = {folder / WEIGHTS: tensors_to_bytes(tensors), folder / "cfg.json": json_to_bytes(config, "metadata")}
    folder.mkdir(parents=True, exist_ok=True)
    write_all(files)


def _architecture(sae: SAE) -> str:
    kind = JumpReLU if isinstance(sae.activation, BatchTopK) else type(sae.activation)
    skip = sae.W_skip is not None
    transcoder = skip or sae.d_in != sae.d_out
    name = next((name for name, row in ARCHITECTURES.items() if row == (kind, transcoder, skip)), None)
    if name is None or (sae.rescale_by_decoder_norm and kind is not TopK) or (skip and sae.pre_bias_kind != "none"):
        raise FormatError(f"sae: got {sae}, need an architecture of SAELens: one of {list(ARCHITECTURES)}")
    if isinstance(sae.normalization, LayerNorm) and sae.normalization != LAYER_NORM:
        raise FormatError(f"sae: got {sae.normalization}, need {LAYER_NORM}: SAELens' config has no field for eps")
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
