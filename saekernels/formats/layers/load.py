"""`load_cross_layer`: which format a folder of layers has, and the dictionary in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.crosslayer.transcoders import TranscoderSet
from saekernels.formats import hub
from saekernels.formats.files import FLOATS, FormatError
from saekernels.formats.layers import (
    circuit_tracer,
    clt_forge,
    crosslayer_coding,
    folders,
    gemma_scope,
    llamascopium,
    refused,
    transcoder_set,
)
from saekernels.formats.layers.found import Apart, Layers
from saekernels.formats.load import finish
from saekernels.ops import _check

LAYERED = (circuit_tracer, gemma_scope, llamascopium, clt_forge, crosslayer_coding, refused, transcoder_set, folders)


def load_cross_layer(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    k: int | None = None,
    revision: str | None = None,
    lazy: bool = True,
) -> CrossLayerTranscoder | TranscoderSet:
    """Load a cross-layer transcoder, a weakly causal crosscoder, or a set of per-layer transcoders.

    Reads circuit-tracer (both), Gemma Scope 2 (both of the first), Llamascopium, CLT-Forge, crosslayer-coding and a
    folder for each transcoder; the format is recognised by its files (docs/reference/formats.md).

    Args:
        path: the folder, or its config; or a Hugging Face hub id "owner/name/folder/in/it", which is downloaded.
        device: where the weights go; the CPU by default.
        dtype: the dtype of the weights; the files' by default, the widest of several.
        k: active latents, for TopK transcoders of a set whose files do not say; without it they look like ReLU.
        revision: of the hub's repository; refused for what is on the disk.
        lazy: whether decoders stay in their file, mapped into memory, of which a forward pass reads the rows of active
            latents. It takes a file that has them as they are used (circuit-tracer, Gemma Scope 2), its own dtype, and
            the CPU; other decoders are read, and encoders, of which every pass needs all, always are. Not checked for
            values that are no numbers. A file must not change while it is in use.

    Returns:
        In eval mode: CrossLayerTranscoder, for `layer_sites` (one whose TopK is over all layers of a token takes
        codes of a clean pass there); or TranscoderSet, for its `at_sites`.

    Raises:
        FileNotFoundError: there is no such path, or nothing under that id.
        FormatError (a ValueError): an unknown format or architecture, one that chooses over a batch, a damaged or
            missing file, tensors that do not fit.
        TypeError, ValueError: a dtype that no SAE can have, a revision of what is no hub id, a k that is no count.
    """
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"dtype: got {dtype!r}, need one of {', '.join(map(str, FLOATS))}")
    found = open_layers(path, k=k, revision=revision)
    if isinstance(found, Layers):
        return found.transcoder(dtype, torch.device(device or "cpu"), lazy)
    made = [finish(one, device, dtype) for one in found.checkpoints]
    if not lazy:
        for value in (value for one in made for value in one.parameters()):
            value.data = value.data.clone()
    return TranscoderSet(made, found.sites, found.metadata).eval()


def open_layers(path: str | Path, *, k: int | None = None, revision: str | None = None) -> Layers | Apart:
    """What `load_cross_layer` reads, checked; matrices are not in memory yet."""
    if k is not None and (_check.integer(k) or 0) < 1:
        raise ValueError(f"k: got {k!r}, need an int of at least 1")
    place = Path(path)
    if not place.exists():
        place = hub.fetch(str(path), revision)
    elif revision is not None:
        raise ValueError(f"revision: got {revision!r} for {path}, which is on this machine's disk; need a hub id")
    folder = place.parent if place.is_file() and place.suffix in (".json", ".yaml", ".yml") else place
    form = form_of(folder)
    if form is None:
        known = "; ".join(one.FILES for one in LAYERED if one is not refused)
        raise FormatError(f"{path}: no dictionary that spans layers, need one of: {known}")
    found: Layers | Apart = form.read(folder, k)
    return found


def form_of(folder: Path) -> Any:
    """The format of a folder; None where it has none of these."""
    return next((form for form in LAYERED if folder.is_dir() and form.find(folder)), None)
