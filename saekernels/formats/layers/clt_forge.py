"""CLT-Forge: clt_cfg.json and clt_weights.safetensors, or the rankN_ shards that hold some latents of every layer each.

Decoders [L(L + 1) / 2, F, d] lie in the order of torch.triu_indices, by source and then by target, a bias with each of
them; biases to one target are added up. Without `cross_layer_decoders` it is a transcoder for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from saekernels.formats.checkpoint import build
from saekernels.formats.config import boolean, integer, read_json, told
from saekernels.formats.files import FormatError, Tensors, refuse_k
from saekernels.formats.layers.circuit_tracer import sites_of
from saekernels.formats.layers.found import Apart, Layer, Layers, positive_numbers
from saekernels.formats.looking import is_looking
from saekernels.sae.activations import JumpReLU
from saekernels.sae.metadata import Metadata

NAME = "CLT-Forge"
FILES = "clt_cfg.json + clt_weights.safetensors (or rankN_clt_weights.safetensors)"
CONFIG, _WEIGHTS = "clt_cfg.json", "clt_weights.safetensors"
# Where its attribution reads and writes; its configs do not say.
_READS, _WRITES = "ln2.hook_normalized", "hook_mlp_out"
_WITHOUT_EFFECT = """
    device dtype seed debug jumprelu_bandwidth jumprelu_init_threshold normalize_decoder dead_feature_window
    context_size functional_loss l0_coefficient sparse_decode sparse_threshold ddp fsdp feature_sharding world_size
    is_sharded
""".split()  # noqa: SIM905
_STATISTICS = ("layer_mask", "feature_count", "l_idx", "k_idx")


def find(folder: Path) -> bool:
    """Whether a folder is of this format."""
    return (folder / CONFIG).is_file()


def read(folder: Path, k: int | None = None) -> Layers | Apart:
    """The transcoder of a folder, or the set of them, one a layer."""
    config = read_json(folder / CONFIG)
    refuse_k(k, config.path)
    function = str(config.get("activation_fn", "jumprelu")).lower()
    if function != "jumprelu":
        raise FormatError(f"{config.path}: 'activation_fn' is {function!r:.40}, need 'jumprelu'")
    shards = _shards(folder, boolean(config, "feature_sharding", config.path))
    n_layers, d = (integer(config, name, config.path) for name in ("n_layers", "d_in"))
    crossing = boolean(config, "cross_layer_decoders", config.path, True)
    pairs = n_layers * (n_layers + 1) // 2 if crossing else n_layers
    found = [_take(shard, n_layers, d, pairs) for shard in shards]
    n_latents = sum(one["b_enc"].shape[1] for one in found)
    if n_latents != integer(config, "d_latent", config.path):
        raise FormatError(f"{config.path}: 'd_latent' is {config['d_latent']}, but the files have {n_latents} latents")
    ins, outs = _scales(shards[0], n_layers)
    for shard in shards:
        shard.drop("estimated_norm_scaling_factor_in", "estimated_norm_scaling_factor_out")
        shard.done()
    joined = {name: _joined([one[name] for one in found], axis) for name, axis in _AXES.items()}
    joined["b_dec"] = found[0]["b_dec"]
    metadata = Metadata(NAME, model=told(config, "model_name", str), ignored=config.unknown(_WITHOUT_EFFECT))
    layers = tuple(_layer(joined, s, n_layers, ins, outs, crossing) for s in range(n_layers))
    made = Layers(folder, layers, metadata, sites_of(_READS, _WRITES, n_layers))
    return made if crossing else _apart(made)


_AXES = {"W_enc": 2, "b_enc": 1, "W_dec": 1, "threshold": 1}


def _shards(folder: Path, sharded: bool) -> list[Tensors]:
    """The file, or those of all ranks. Raises FormatError where one is missing."""
    files = [folder / _WEIGHTS]
    if sharded or not files[0].is_file():
        ranks = {path.name.split("_")[0].removeprefix("rank"): path for path in folder.glob(f"rank*_{_WEIGHTS}")}
        if not ranks and not files[0].is_file():
            raise FormatError(f"{folder}: neither {_WEIGHTS} nor shards of it, rank0_{_WEIGHTS} and so on")
        if ranks:
            if missing := [rank for rank in range(len(ranks)) if str(rank) not in ranks]:
                raise FormatError(f"{folder}: rank{missing[0]}_{_WEIGHTS} is missing; there are {sorted(ranks)}")
            files = [ranks[str(rank)] for rank in range(len(ranks))]
    return [Tensors(file) for file in files]


def _take(tensors: Tensors, n_layers: int, d: int, pairs: int) -> dict[str, Tensor]:
    tensors.drop(*_STATISTICS, *(name for name in tensors.names if name.startswith("model.")))
    n_latents = tensors.shape("b_enc")[1]
    return {
        "W_enc": tensors.take("W_enc", n_layers, d, n_latents),
        "b_enc": tensors.take("b_enc", n_layers, n_latents),
        "W_dec": tensors.take("W_dec", pairs, n_latents, d),
        "b_dec": tensors.take("b_dec", pairs, d),
        "threshold": tensors.take("log_threshold", n_layers, n_latents).float().exp(),
    }


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Shards as one; where nobody sees the values, without reading them."""
    if len(parts) == 1:
        return parts[0]
    if is_looking() and parts[0].dim() > 2:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return parts[0].new_empty(1).expand(shape)
    return torch.cat(list(parts), axis)


def _scales(tensors: Tensors, n_layers: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What inputs were multiplied by, and outputs, of each layer; 1 where the file has no such factor."""
    found = []
    for end in ("in", "out"):
        name = f"estimated_norm_scaling_factor_{end}"
        values = tensors.take(name, n_layers).tolist() if name in tensors else [1.0] * n_layers
        found.append(positive_numbers(tensors.path, name, values))
    return found[0], found[1]


def _layer(
    joined: dict[str, Tensor],
    s: int,
    n_layers: int,
    ins: tuple[float, ...],
    outs: tuple[float, ...],
    crossing: bool,
) -> Layer:
    starts = [s * n_layers - s * (s - 1) // 2 for s in range(n_layers)]
    pairs = [starts[source] + s - source for source in range(s + 1)] if crossing else [s]
    targets = range(s, n_layers) if crossing else range(s, s + 1)
    views = [joined["W_dec"][starts[s] + t - s if crossing else s] for t in targets]
    state = {
        "W_enc": joined["W_enc"][s].T,
        "b_enc": joined["b_enc"][s],
        "b_dec": (joined["b_dec"][pairs].double().sum(0) / outs[s]).to(joined["b_dec"].dtype),
        "threshold": joined["threshold"][s],
    }
    own = outs[s : s + len(views)]
    return Layer(state, views, JumpReLU(), in_scale=ins[s], out_scales=None if set(own) == {1.0} else own)


def _apart(found: Layers) -> Apart:
    """Layers that write to themselves alone, as transcoders."""
    made = []
    for layer in found.layers:
        W_enc, W_dec = layer.state["W_enc"], layer.to(0)
        if not is_looking():
            W_enc = W_enc if layer.in_scale == 1.0 else (W_enc.double() * layer.in_scale).to(W_enc.dtype)
            W_dec = layer.read(layer.stored, None)
        made.append(build(found.path, {**layer.state, "W_enc": W_enc, "W_dec": W_dec}, JumpReLU(), found.metadata))
    return Apart(found.path, tuple(made), found.metadata, found.sites)
