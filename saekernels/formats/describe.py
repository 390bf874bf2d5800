"""What a checkpoint is, without loading its weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekernels.formats.checkpoint import Checkpoint
from saekernels.formats.load import open_checkpoint
from saekernels.formats.looking import looking
from saekernels.sae.activations import BatchTopK, JumpReLU


def describe(
    path: str | Path,
    *,
    input_scale: float | None = None,
    k: int | None = None,
    revision: str | None = None,
    format: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that `saekernels.load` would read at `path`, JSON-ready; arguments and errors are `load`'s.

    Matrices are mapped into memory and not read: of safetensors, of torch files that are zip archives, and of numpy
    archives that are not compressed. Others are read whole. A hub id is downloaded first.

    Returns:
        format; files [{path, bytes}] that were read; class ("SAE" or "transcoder"); d_in, d_out, n_latents;
        activation, its k and thresholds [least, largest] or null; biases; pre_bias (what is taken from the input) or
        null; normalization; rescale_by_decoder_norm; skip; dtype as loaded, and stored by tensor; memory_bytes as
        loaded and disk_bytes; what the files say of the model and the text, null where they do not (`Metadata`); sites;
        ignored, the fields of configs that are not known and were not used; and the warnings of loading.
    """
    with looking() as files, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = open_checkpoint(
            path, dtype=None, input_scale=input_scale, k=k, revision=revision, format=format, config=config
        )
        sizes = [{"path": str(file), "bytes": file.stat().st_size} for file in files]
        return {
            "path": str(path),
            "format": found.metadata.format,
            "files": sizes,
            **_function(found),
            **_weights(found),
            "disk_bytes": sum(file["bytes"] for file in sizes),
            **_metadata(found),
            "warnings": [str(one.message) for one in told],
        }


def _function(found: Checkpoint) -> dict[str, Any]:
    state, options = found.state, found.options
    d_in, d_out = state["W_enc"].shape[1], state["W_dec"].shape[1]
    told = found.metadata
    moves = told.reads is not None and told.writes is not None and told.reads != told.writes
    normalization = options["normalization"]
    pre_bias = {"none": None, "b_dec": "b_dec", "separate": "b_pre"}[options["pre_bias"]]
    return {
        "class": "transcoder" if d_in != d_out or options["skip"] or moves else "SAE",
        "d_in": d_in,
        "d_out": d_out,
        "n_latents": found.n_latents,
        "activation": repr(found.activation),
        "k": getattr(found.activation, "k", None),
        "thresholds": _range(state["threshold"]) if isinstance(found.activation, JumpReLU | BatchTopK) else None,
        "biases": [name for name in ("b_enc", "b_gate", "b_mag", "b_pre", "b_dec") if name in state],
        "pre_bias": pre_bias,
        "normalization": None if normalization is None else repr(normalization),
        "rescale_by_decoder_norm": options["rescale_by_decoder_norm"],
        "skip": options["skip"],
    }


def _weights(found: Checkpoint) -> dict[str, Any]:
    loaded = {name: found.dtype_of(name) for name in found.state}
    return {
        "dtype": _short(found.dtype),
        "stored": {name: _short(value.dtype) for name, value in found.state.items()},
        "memory_bytes": sum(value.numel() * loaded[name].itemsize for name, value in found.state.items()),
    }


def _metadata(found: Checkpoint) -> dict[str, Any]:
    told = found.metadata
    head = "" if told.head is None else f"[head={told.head}]"
    return {
        "model": told.model,
        "reads": told.reads,
        "writes": told.writes,
        "sites": [f"{site}{head}" for site in told.sites],
        "head": told.head,
        "prepend_bos": told.prepend_bos,
        "context": told.context,
        "dataset": told.dataset,
        "model_options": dict(told.model_options),
        "other": dict(told.other),
        "ignored": list(told.ignored),
    }


def _range(thresholds: Tensor) -> list[float | None]:
    ends = (float(thresholds.min()), float(thresholds.max()))
    return [end if math.isfinite(end) else None for end in ends]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
