"""Cross-layer transcoders of Llamascopium (OpenMOSS): config.json and sae_weights, decoders by their target.

W_D.t [t + 1, F, d] holds what all layers up to t write at layer t. Thresholds, stored as logarithms, apply to
pre-activations times the norm of a latent's decoders, concatenated, where `sparsity_include_decoder_norm`; as their
`encode` has it (their `encode_single_layer` takes another norm). "layertopk" is TopK over all layers of a token.
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from saekernels.formats.config import Config, boolean, integer, read_json
from saekernels.formats.files import FormatError, Tensors, refuse_k
from saekernels.formats.layers.found import Layer, Layers, positive_numbers, tensors_at
from saekernels.sae.activations import Activation, JumpReLU, ReLU, TopK
from saekernels.sae.metadata import Metadata

NAME = "Llamascopium CLT"
FILES = "config.json + sae_weights.safetensors (or .pt)"
_WEIGHTS = ("sae_weights.safetensors", "sae_weights.pt")
_KINDS = ("clt", "crosscoder", "lorsa", "molt")
_THRESHOLDS = "activation_function.log_jumprelu_threshold"
_NORM = "dataset_average_activation_norm."
_WITHOUT_EFFECT = """
    sae_type dtype device jumprelu_threshold_window jumprelu_lr_factor use_triton_kernel
    sparsity_threshold_for_triton_spmm_kernel sae_pretrained_name_or_path strict_loading expansion_factor d_sae top_k
    init_cross_layer_decoder_all_zero decode_with_csr sparsity_threshold_for_csr use_decoder_bias
    force_unit_decoder_norm
""".split()  # noqa: SIM905


def find(folder: Path) -> bool:
    """Whether a folder is of this format."""
    path = folder / "config.json"
    return path.is_file() and _weights(folder) is not None and read_json(path).get("sae_type") in _KINDS


def read(folder: Path, k: int | None = None) -> Layers:
    """The transcoder of a folder. Attention layers of features, and decoders that depend on the input, are refused."""
    config = read_json(folder / "config.json")
    refuse_k(k, config.path)
    kind = config.get("sae_type")
    if kind != "clt":
        raise FormatError(f"{config.path}: 'sae_type' is {kind!r:.40}, which is no cross-layer transcoder, need 'clt'")
    reads, writes = _hooks(config, "hook_points_in"), _hooks(config, "hook_points_out")
    if len(reads) != len(writes):
        raise FormatError(f"{config.path}: {len(reads)} 'hook_points_in' and {len(writes)} 'hook_points_out'")
    path = _weights(folder)
    assert path is not None
    tensors = tensors_at(path)
    ins, outs = _scales(config, tensors, reads, writes)
    layers = _layers(config, tensors, len(reads), ins, outs)
    tensors.done()
    metadata = Metadata(NAME, ignored=config.unknown(_WITHOUT_EFFECT))
    sites = tuple(a if a == b else f"{a} -> {b}" for a, b in zip(reads, writes, strict=True))
    rescaled = boolean(config, "sparsity_include_decoder_norm", config.path, True)
    return Layers(folder, layers, metadata, sites, rescaled, across=_function(config) == "layertopk")


def _hooks(config: Config, name: str) -> list[str]:
    found = config.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(hook, str) for hook in found):
        raise FormatError(f"{config.path}: {name!r} is {found!r:.60}, need a list of hook points")
    return found


def _layers(
    config: Config, tensors: Tensors, n_layers: int, ins: tuple[float, ...] | None, outs: tuple[float, ...] | None
) -> tuple[Layer, ...]:
    d = integer(config, "d_model", config.path)
    n_latents = tensors.shape("W_E", 3)[2]
    W_E, b_E = tensors.take("W_E", n_layers, d, n_latents), tensors.take("b_E", n_layers, n_latents)
    decoders = [tensors.take(f"W_D.{target}", target + 1, n_latents, d) for target in range(n_layers)]
    biases = [tensors.take(f"b_D.{target}", d) for target in range(n_layers)]
    activation, thresholds = _activation(config, tensors, n_layers, n_latents)
    layers = []
    for s in range(n_layers):
        state = {"W_enc": W_E[s].T, "b_enc": b_E[s], "b_dec": biases[s] if outs is None else biases[s] / outs[s]}
        if thresholds is not None:
            state["threshold"] = thresholds[s]
        views = [decoders[target][s] for target in range(s, n_layers)]
        scales = {} if ins is None or outs is None else {"in_scale": ins[s], "out_scales": outs[s:]}
        layers.append(Layer(state, views, activation, **scales))  # type: ignore[arg-type]
    return tuple(layers)


def _activation(config: Config, tensors: Tensors, n_layers: int, n_latents: int) -> tuple[Activation, Tensor | None]:
    function = _function(config)
    if _THRESHOLDS in tensors:
        if function != "jumprelu":
            raise FormatError(f"{config.path}: 'act_fn' is {function!r:.40}, but {tensors.path.name} has thresholds")
        return JumpReLU(), tensors.take(_THRESHOLDS, n_layers, n_latents).float().exp()
    if function in ("topk", "layertopk"):
        return TopK(integer(config, "top_k", config.path)), None
    if function == "relu":
        return ReLU(), None
    what = {
        "batchlayertopk": "it chooses over all layers of a batch, so that codes of the first depend on the last",
        "batchtopk": "it chooses over a batch",
        "jumprelu": "there are no thresholds in the file",
    }.get(function, "it is not known")
    raise FormatError(f"{config.path}: 'act_fn' is {function!r:.40}: {what}; need relu, topk, layertopk, or thresholds")


def _function(config: Config) -> str:
    return str(config.get("act_fn", "relu")).lower()


def _scales(
    config: Config, tensors: Tensors, reads: list[str], writes: list[str]
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """What inputs were multiplied by, and outputs, of each layer: sqrt(d) / mean norm; None where nothing was."""
    norms = {name.removeprefix(_NORM): tensors.number(name) for name in tensors.names if name.startswith(_NORM)}
    tensors.drop(*(_NORM + hook for hook in norms))
    told = config.get("dataset_average_activation_norm")
    norms |= told if isinstance(told, dict) else {}
    kind = config.get("norm_activation", "dataset-wise")
    if kind in ("inference", "none"):
        return None, None
    if kind != "dataset-wise":
        raise FormatError(f"{config.path}: 'norm_activation' is {kind!r:.40}, need none, inference or dataset-wise")
    if missing := [hook for hook in (*reads, *writes) if not isinstance(norms.get(hook), int | float)]:
        raise FormatError(
            f"{config.path}: 'norm_activation' is 'dataset-wise', but no file has the norm of {missing[0]}"
        )
    root = math.sqrt(integer(config, "d_model", config.path))
    every = [positive_numbers(config.path, _NORM[:-1], [norms[hook] for hook in side]) for side in (reads, writes)]  # type: ignore[misc]
    ins, outs = (tuple(root / norm for norm in side) for side in every)
    return ins, outs


def _weights(folder: Path) -> Path | None:
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
