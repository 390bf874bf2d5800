"""Llama Scope and Llamascopium (OpenMOSS): hyperparams.json or config.json, with their weights.

Their SAEs see x * s with s = sqrt(d) / (mean norm of the input); weights are in those units, the one threshold of Llama
Scope in raw ones. Thresholds apply to pre-activations times the decoder's norms where `sparsity_include_decoder_norm`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.config import Config, boolean, integer, read_json, told
from saekernels.formats.files import FormatError, Tensors, refuse_k
from saekernels.formats.looking import is_looking
from saekernels.formats.pickles import as_tensors, read_pt, tensors_of
from saekernels.formats.readers import llama_scope_maths as maths
from saekernels.sae.activations import ConstantNorm, Normalization, Scale
from saekernels.sae.metadata import Metadata

NAME = "Llama Scope"
FILES = "hyperparams.json or config.json + checkpoints/final.safetensors or sae_weights.safetensors (or .pt)"
_WEIGHTS = (
    "sae_weights.safetensors", "sae_weights.pt", "checkpoints/pruned.safetensors", "checkpoints/pruned.pt",
    "checkpoints/final.safetensors", "checkpoints/final.pt",
)  # fmt: skip
_CONFIGS = ("hyperparams.json", "config.json")
# How the weights came about, how they are computed with, and where they lie.
_WITHOUT_EFFECT = """
    sae_type dtype device jumprelu_threshold_window jumprelu_lr_factor use_triton_kernel
    sparsity_threshold_for_triton_spmm_kernel sae_pretrained_name_or_path strict_loading expansion_factor d_sae
    top_k use_ghost_grads lp l1_coefficient init_decoder_norm init_encoder_norm norm_activation
    init_encoder_with_decoder_transpose decoder_exactly_fixed_norm
    remove_gradient_parallel_to_decoder_directions sparsity_include_decoder_norm jump_relu_threshold
    dataset_average_activation_norm act_fn use_glu_encoder apply_decoder_bias_to_pre_encoder use_decoder_bias
    tp_size ddp_size force_unit_decoder_norm
""".split()  # noqa: SIM905


def find(path: Path) -> Path | None:
    """The folder, given it or its config; the file of weights, where that is what was named."""
    folder = _folder(path)
    named = any((folder / name).is_file() for name in _CONFIGS)
    if not named or _weights(path) is None:
        return None
    return path if path.is_file() and path.name not in _CONFIGS else folder


def read(found: Path, input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The SAE or transcoder of a folder, or of its file of weights that was named.

    Crosscoders, cross-layer transcoders and attention SAEs are refused.
    """
    folder = _folder(found)
    path = next(folder / name for name in _CONFIGS if (folder / name).is_file())
    config = read_json(path)
    refuse_k(k, path)
    if config.get("sae_type", "sae") not in ("sae", "transcoder") or config.get("use_glu_encoder"):
        what = "a gated linear encoder" if config.get("use_glu_encoder") else f"a {config['sae_type']!r:.40}"
        elsewhere = ": saekernels.load_cross_layer reads it" if config.get("sae_type") == "clt" else ""
        raise FormatError(f"{path}: {what} is no SAE of one encoder and one decoder{elsewhere}")
    weights = _weights(found)
    assert weights is not None
    tensors = Tensors(weights) if weights.suffix == ".safetensors" else _from_pt(weights)
    d = integer(config, "d_model", path)
    state, norms = _state(tensors, d, config)
    _check_latents(config, len(state["W_enc"]), weights)
    scale, ratio = maths.scales(config, norms, d, path)
    pre_bias = maths.pre_bias(config, state, ratio)
    state["b_dec"] = state["b_dec"] * ratio
    if not is_looking():
        state["W_dec"] = state["W_dec"] * ratio
    activation = maths.activation(config, tensors, state, path, input_scale if scale is None else scale)
    tensors.done()
    normalization: Normalization | None = Scale(scale) if scale is not None else None
    norm = config.get("norm_activation")
    if norm == "token-wise":
        _refuse_transcoder(config, state)
        normalization = ConstantNorm()
    elif scale is None and norm in maths.DATASET_WISE:
        if input_scale is None:
            warnings.warn(
                f"{path}: trained on scaled activations, but their average norm is in no file; inputs are taken as "
                "they are. Give input_scale = sqrt(d) / mean norm",
                stacklevel=4,
            )
        normalization = None if input_scale is None else Scale(input_scale)
    elif norm not in ("inference", "none", *maths.DATASET_WISE):
        need = "none, inference, token-wise or dataset-wise"
        raise FormatError(f"{path}: 'norm_activation' is {norm!r:.40}, need {need}")
    elif input_scale is not None:
        own = "takes activations as they are" if scale is None else "holds its own"
        raise FormatError(f"input_scale: got {input_scale}, but {path} {own}")
    return build(
        path,
        state,
        activation,
        _metadata(config),
        pre_bias=pre_bias,
        normalization=normalization,
        rescale_by_decoder_norm=boolean(config, "sparsity_include_decoder_norm", path),
    )


def _refuse_transcoder(config: Config, state: dict[str, Tensor]) -> None:
    """Of a token-wise norm: the output is scaled by the norm of what it replaces, which a transcoder does not read."""
    ends = [config.get("hook_point_in"), config.get("hook_point_out", config.get("hook_point_in"))]
    if state["W_enc"].shape[1] != state["W_dec"].shape[1] or ends[0] != ends[1]:
        raise FormatError(
            f"{config.path}: 'norm_activation' is 'token-wise' for a transcoder, need dataset-wise or inference: its "
            "output is scaled by the norm of what it replaces"
        )


def _check_latents(config: Config, n_latents: int, weights: Path) -> None:
    """FormatError where the config has another number of latents than the tensors; pruned files have fewer."""
    d_sae, factor = told(config, "d_sae", int), config.get("expansion_factor")
    if weights.stem == "pruned":
        return
    if d_sae not in (None, n_latents):
        raise FormatError(f"{config.path}: 'd_sae' is {d_sae}, but {weights.name} has {n_latents} latents")
    # Their d_sae, where the config has none, is d_model * expansion_factor, cut to an int.
    if d_sae is None and isinstance(factor, int | float) and not -1e-6 <= config["d_model"] * factor - n_latents < 1:
        raise FormatError(
            f"{config.path}: 'expansion_factor' is {factor} for {config['d_model']} dimensions, but {weights.name} has "
            f"{n_latents} latents"
        )


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _weights(path: Path) -> Path | None:
    """The weights: the file that was named, else the first in the tool's own order."""
    folder = _folder(path)
    if path.is_file() and path.name not in _CONFIGS:
        return path if path.relative_to(folder).as_posix() in _WEIGHTS else None
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)


def _from_pt(path: Path) -> Tensors:
    found = read_pt(path)
    inner = found.get("sae", found)
    if not isinstance(inner, Mapping):
        raise FormatError(f"{path}: 'sae' is {type(inner).__name__}, need a dictionary of tensors")
    return tensors_of(path, as_tensors(path, {str(name): value for name, value in inner.items()}))


def _state(tensors: Tensors, d: int, config: Config) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights, and the average norms that the file holds, by hook point."""
    if "W_E" in tensors:
        n_latents, d_out = tensors.shape("W_D")
        state = {
            "W_enc": tensors.take("W_E", d, n_latents).T,
            "W_dec": tensors.take("W_D", n_latents, d_out),
            "b_enc": tensors.take("b_E", n_latents),
        }
        bias = "b_D"
    else:
        n_latents, _ = tensors.shape("encoder.weight")
        d_out = tensors.shape("decoder.weight")[0]
        state = {
            "W_enc": tensors.take("encoder.weight", n_latents, d),
            "W_dec": tensors.take("decoder.weight", d_out, n_latents).T,
            "b_enc": tensors.take("encoder.bias", n_latents),
        }
        bias = "decoder.bias"
    state["b_dec"] = _decoder_bias(config, tensors, bias, d_out, state["W_dec"].dtype)
    norms = {}
    for side, key in (("in", "hook_point_in"), ("out", "hook_point_out")):
        name = f"dataset_average_activation_norm.{config.get(key)}"
        if name in tensors:
            norms[side] = float(tensors.take(name))
    return state, norms


def _metadata(config: Config) -> Metadata:
    names = config.kept("dataset_average_activation_norm", "norm_activation")
    ignored = config.unknown(_WITHOUT_EFFECT)
    reads, writes = (told(config, f"hook_point_{end}", str) for end in ("in", "out"))
    return Metadata(NAME, reads=reads, writes=writes or reads, ignored=ignored, other=names)


def _decoder_bias(config: Config, tensors: Tensors, name: str, d_out: int, dtype: torch.dtype) -> Tensor:
    """The decoder's bias; zeros where the config says that there is none. What file and config say must agree."""
    wanted = boolean(config, "use_decoder_bias", config.path, name in tensors)
    if wanted != (name in tensors):
        there = "is" if name in tensors else "is not"
        raise FormatError(f"{config.path}: 'use_decoder_bias' is {wanted}, but {name!r} {there} in {tensors.path.name}")
    return tensors.take(name, d_out) if wanted else torch.zeros(d_out, dtype=dtype)
