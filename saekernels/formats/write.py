"""A checkpoint folder in the layout of SAELens (>= 6): cfg.json and sae_weights.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saekernels.files.atomic import write_all
from saekernels.formats.files import FormatError, json_to_bytes, tensors_to_bytes
from saekernels.formats.fold import SaeLensForm, fold
from saekernels.formats.readers.saelens import WEIGHTS
from saekernels.sae.activations import AbsTopK, ConstantNorm, LayerNorm, TopK
from saekernels.sae.metadata import Metadata
from saekernels.sae.module import SAE

# Without a version of 6 or later SAELens takes the file for one from before, and drops the metadata.
_VERSION = "6.0.0"
_NORMALIZATIONS = {LayerNorm: "layer_norm", ConstantNorm: "constant_norm_rescale"}


def write(sae: SAE, folder: Path, metadata: Mapping[str, object]) -> tuple[str, ...]:
    """See `saekernels.save`."""
    if not isinstance(sae, SAE):
        raise TypeError(f"sae: got {type(sae).__name__}, need a saekernels.SAE")
    if any(value.is_meta for value in (*sae.parameters(), *sae.buffers())):
        raise FormatError("sae: its weights are on the meta device, need weights that hold values")
    form = fold(sae)
    # Their W_enc is [d_in, F].
    weights = tensors_to_bytes({**form.tensors, "W_enc": form.tensors["W_enc"].T})
    config = json_to_bytes(_config(sae, form, metadata), "metadata")
    folder.mkdir(parents=True, exist_ok=True)
    write_all({folder / WEIGHTS: weights, folder / "cfg.json": config})
    return (*form.notes, *_lost(sae, form))


def _config(sae: SAE, form: SaeLensForm, metadata: Mapping[str, object]) -> dict[str, object]:
    kept = {} if sae.metadata is None else _named(sae.metadata)
    reshape = kept.pop("reshape_activations", None)
    if reshape is None:
        # As SAELens takes configs from before 6.0, which do not say: all heads side by side.
        heads = str(kept.get("hook_name", "")).endswith("hook_z") and "transcoder" not in form.architecture
        elsewhere = "hook_head_index" in kept or "hook_name_out" in kept
        reshape = "hook_z" if heads and not elsewhere else "none"
    config: dict[str, object] = {
        "architecture": form.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.n_latents,
        "dtype": str(form.tensors["W_enc"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": form.reads_b_dec,
        "normalize_activations": _NORMALIZATIONS.get(type(sae.normalization), "none"),
        "reshape_activations": reshape,
        "metadata": {"sae_lens_version": _VERSION, **kept, **metadata},
    }
    if isinstance(form.activation, TopK | AbsTopK):
        config |= {"k": form.activation.k, "rescale_acts_by_decoder_norm": form.rescaled}
    if "transcoder" in form.architecture:
        config["d_out"] = sae.d_out
    return config


def _named(metadata: Metadata) -> dict[str, Any]:
    """What is known, by SAELens' names; `reshape_activations`, which is a field of its own there, among it."""
    other = dict(metadata.other)
    version = other.get("sae_lens_version")
    major = version.partition(".")[0] if isinstance(version, str) else ""
    if not major.isdigit() or int(major) < 6:
        other.pop("sae_lens_version", None)
    named = {
        "model_name": metadata.model,
        "hook_name": metadata.reads,
        "hook_name_out": metadata.writes if metadata.writes != metadata.reads else None,
        "hook_head_index": metadata.head,
        "prepend_bos": metadata.prepend_bos,
        "context_size": metadata.context,
        "dataset_path": metadata.dataset,
        "model_from_pretrained_kwargs": dict(metadata.model_options) or None,
    }
    return {**other, **{name: value for name, value in named.items() if value is not None}}


def _lost(sae: SAE, form: SaeLensForm) -> list[str]:
    """A sentence for everything that the folder does not hold, or that SAELens does not take from it."""
    told = []
    threshold = form.tensors.get("threshold")
    if threshold is not None and threshold.dtype != form.tensors["W_enc"].dtype:
        told.append("thresholds are in float32 in the file, but SAELens rounds them to the dtype of the weights")
    ignored = () if sae.metadata is None else sae.metadata.ignored
    if ignored:
        told.append(f"fields that are not known here were neither used nor kept: {', '.join(map(repr, ignored))}")
    return told
