"""`load` and `save`: which format a checkpoint has, and the SAE in it.

A format is a module with `NAME`, `FILES` (what is looked for), `find(path)` and `read(found, input_scale, k)`; formats
of torch files have `claims(dictionary)` instead of `find`. safetensors, JSON and arrays are read, and torch files by
the unpickler that makes nothing but tensors and plain values: nothing in a checkpoint is ever run.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saekernels.formats import hub
from saekernels.formats.candidates import FORMATS as FORMATS
from saekernels.formats.candidates import TORCH_FORMATS as TORCH_FORMATS
from saekernels.formats.candidates import Wanted
from saekernels.formats.checkpoint import Checkpoint
from saekernels.formats.choice import read
from saekernels.formats.files import FLOATS
from saekernels.formats.write import write
from saekernels.ops import _check
from saekernels.sae.activations import Scale
from saekernels.sae.module import SAE


def load(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    input_scale: float | None = None,
    k: int | None = None,
    revision: str | None = None,
    format: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> SAE:
    """Load an SAE or transcoder from a checkpoint; the format is recognised by its files and tensors.

    Reads SAELens (before and since 6.0), sparsify, dictionary_learning (ae.pt), Gemma Scope (1, 2 and transcoders),
    Llama Scope and Llamascopium, OpenAI's sparse_autoencoder, Goodfire, Qwen Scope, circuit-tracer transcoders, and
    plain state dicts (docs/reference/formats.md).

    Args:
        path: a folder or a file of a checkpoint; or a Hugging Face hub id "owner/name/folder/in/it", of which only what
            is under that folder, or that file, is downloaded.
        device: where the weights go; the CPU by default.
        dtype: the dtype of the weights; the checkpoint's by default, the widest of several.
        input_scale: the factor on inputs of an SAE that was trained on scaled activations and whose checkpoint does not
            hold it (SAELens' `expected_average_only_in`); such a checkpoint loads with a warning without it.
        k: active latents, for files that do not say (Qwen Scope, state dicts).
        revision: of the hub's repository; refused for what is on the disk.
        format: its format by name ("state dict", "Qwen Scope", ...), for files that fit several.
        config: what no file says of a plain state dict, in the fields of a cfg.json:
            {"activation": "topk", "k": 32, "apply_b_dec_to_input": True} (b_dec is taken from the input).

    Returns:
        SAE in eval mode.

    Raises:
        FileNotFoundError: there is no such path, or nothing under that id.
        FormatError (a ValueError): an unknown format or architecture, a damaged file, tensors that do not fit, a file
            or folder that fits two formats and would be another function in each.
        TypeError, ValueError: a dtype or an input scale that no SAE can have, a revision of what is no hub id.
    """
    found = open_checkpoint(
        path, dtype=dtype, input_scale=input_scale, k=k, revision=revision, format=format, config=config
    )
    return finish(found, device, dtype)


def open_checkpoint(
    path: str | Path,
    *,
    dtype: torch.dtype | None,
    input_scale: float | None,
    k: int | None,
    revision: str | None,
    format: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """What `load` reads, checked, and not yet an SAE: tensors of safetensors files are not in memory yet."""
    _check_options(dtype, input_scale)
    if k is not None and (_check.integer(k) or 0) < 1:
        raise ValueError(f"k: got {k!r}, need an int of at least 1")
    if config is not None and not (isinstance(config, Mapping) and all(isinstance(name, str) for name in config)):
        raise TypeError(f"config: got {config!r:.40}, need a mapping from field to value")
    place = Path(path)
    if not place.exists():
        place = hub.fetch(str(path), revision)
    elif revision is not None:
        raise ValueError(f"revision: got {revision!r} for {path}, which is on this machine's disk; need a hub id")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read(place, Wanted(input_scale, k, format, config))
    for one in caught:
        warnings.warn(str(one.message), one.category, stacklevel=3)
    return found


def finish(found: Checkpoint, device: torch.device | str | None, dtype: torch.dtype | None) -> SAE:
    """The SAE of a checkpoint in eval mode, on that device and in that dtype."""
    return _move(found.sae(), device, dtype).eval()


def save(sae: SAE, path: str | Path, *, metadata: dict[str, object] | None = None) -> tuple[str, ...]:
    """Write `sae` as a SAELens (>= 6) checkpoint folder: cfg.json and sae_weights.safetensors.

    What SAELens has no place for is folded into the weights where that is the same function in exact arithmetic: an
    input scale, a separate pre-bias, decoder norms, BatchTopK as JumpReLU with equal thresholds, a Gated transcoder as
    a JumpReLU one. It is rounded once, to the dtype of the weights. `sae.metadata` goes into cfg.json's metadata.

    Args:
        sae: an SAE.
        path: the folder, made if it is not there.
        metadata: more for "metadata" in cfg.json, e.g. {"model_name": ..., "hook_name": ...}, before what the SAE has.

    Returns:
        A sentence for everything that was folded, is written as something else, or could not be kept.

    Raises:
        TypeError: anything but a `saekernels.SAE`; an edited one has no file.
        FormatError: an SAE that SAELens has no architecture for (GroupMax, TopK without a ReLU, a TopK transcoder), a
            transcoder with a normalisation, another LayerNorm than LayerNorm(eps=1e-5), weights on the meta device or
            too large for their dtype once folded, or metadata that is not JSON. Nothing is then written.
    """
    return write(sae, Path(path), metadata or {})


def _check_options(dtype: torch.dtype | None, input_scale: float | None) -> None:
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"dtype: got {dtype!r}, need one of {', '.join(map(str, FLOATS))}")
    if input_scale is not None:
        try:
            Scale(input_scale)
        except (TypeError, ValueError):
            raise ValueError(f"input_scale: got {input_scale!r}, need a positive finite number") from None


def _move(sae: SAE, device: torch.device | str | None, dtype: torch.dtype | None) -> SAE:
    """`sae.to(...)`, except that thresholds stay in float32 beside half weights: rounding moves them by up to 0.4 %."""
    precise = None if sae.threshold is None else sae.threshold.detach().clone()
    sae.to(device=device, dtype=dtype)
    if sae.threshold is not None and precise is not None and sae.W_enc.dtype in (torch.bfloat16, torch.float16):
        sae.threshold.data = precise.to(device=sae.W_enc.device, dtype=torch.float32)
    return sae
