"""What a folder of layers is, without loading its weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekernels.formats import hub
from saekernels.formats.checkpoint import Checkpoint
from saekernels.formats.layers.found import Apart, Layers
from saekernels.formats.layers.load import form_of, open_layers
from saekernels.formats.looking import looking
from saekernels.sae.metadata import Metadata

_CPU = torch.device("cpu")


def describe_cross_layer(
    path: str | Path, *, k: int | None = None, revision: str | None = None
) -> dict[str, Any] | None:
    """All that `load_cross_layer` would read at `path`, JSON-ready; None where it is another kind of checkpoint.

    Returns:
        format; files [{path, bytes}]; class; layers; d_in, d_out; n_latents and activation of each layer; parameters;
        dtype; skip; rescale_by_decoder_norm; encoder_bytes and decoder_bytes as loaded, of all layers; mapped_bytes,
        what of the decoders stays in the files by default; memory_bytes, all the rest; disk_bytes; model, sites,
        ignored; and the warnings of loading. Arguments and errors are `load_cross_layer`'s.
    """
    place = Path(path)
    if not place.exists():
        place = hub.fetch(str(path), revision)
        revision = None
    if form_of(place) is None:
        return None
    with looking() as files, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = open_layers(place, k=k, revision=revision)
        sizes = [{"path": str(file), "bytes": file.stat().st_size} for file in files]
        facts = _of_layers(found) if isinstance(found, Layers) else _of_set(found)
        return {
            "path": str(path),
            "format": found.metadata.format,
            "files": sizes,
            **facts,
            "disk_bytes": sum(file["bytes"] for file in sizes),
            **_origin(found.metadata, found.sites),
            "warnings": [str(one.message) for one in told],
        }


def _of_layers(found: Layers) -> dict[str, Any]:
    dtype, first = found.dtype, found.layers[0]
    decoders = [one.shape[0] * one.shape[1] * one.shape[2] for one in found.layers]
    mapped = [
        n * dtype.itemsize for n, one in zip(decoders, found.layers, strict=True) if found.mapped(one, dtype, _CPU)
    ]
    return {
        "class": "cross-layer transcoder",
        "d_in": first.state["W_enc"].shape[1],
        "d_out": first.shape[2],
        "n_latents": [one.shape[0] for one in found.layers],
        "activation": [repr(one.activation) + " over all layers" * found.across for one in found.layers],
        "rescale_by_decoder_norm": found.rescaled,
        "skip": "W_skip" in first.state,
        **_memory([one.state for one in found.layers], decoders, dtype, sum(mapped)),
    }


def _of_set(found: Apart) -> dict[str, Any]:
    checkpoints: Sequence[Checkpoint] = found.checkpoints
    first = checkpoints[0].state
    states = [{name: value for name, value in one.state.items() if name != "W_dec"} for one in checkpoints]
    decoders = [one.state["W_dec"].numel() for one in checkpoints]
    return {
        "class": "transcoder set",
        "d_in": first["W_enc"].shape[1],
        "d_out": first["W_dec"].shape[1],
        "n_latents": [one.n_latents for one in checkpoints],
        "activation": [repr(one.activation) for one in checkpoints],
        "rescale_by_decoder_norm": bool(checkpoints[0].options["rescale_by_decoder_norm"]),
        "skip": "W_skip" in first,
        **_memory(states, decoders, checkpoints[0].dtype, 0),
    }


def _memory(
    states: Sequence[Mapping[str, Tensor]], decoders: Sequence[int], dtype: torch.dtype, mapped: int
) -> dict[str, Any]:
    encoders = sum(state["W_enc"].numel() for state in states)
    others = sum(value.numel() for state in states for name, value in state.items() if name != "W_enc")
    return {
        "layers": len(states),
        "parameters": encoders + others + sum(decoders),
        "dtype": str(dtype).removeprefix("torch."),
        "encoder_bytes": encoders * dtype.itemsize,
        "decoder_bytes": sum(decoders) * dtype.itemsize,
        "mapped_bytes": mapped,
        "memory_bytes": (encoders + others + sum(decoders)) * dtype.itemsize - mapped,
    }


def _origin(told: Metadata, sites: Sequence[str] | None) -> dict[str, Any]:
    return {
        "model": told.model,
        "sites": None if sites is None else list(sites),
        "other": dict(told.other),
        "ignored": list(told.ignored),
    }
