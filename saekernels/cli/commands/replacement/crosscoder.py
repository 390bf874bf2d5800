"""What `--crosscoder` names: an acausal crosscoder, or a weakly causal one, which runs as a cross-layer transcoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.errors import InputError, first_line, missing_extra
from saekernels.formats import hub, load_cross_layer, load_crosscoder
from saekernels.formats.layers import llamascopium
from saekernels.formats.layers.load import form_of
from saekernels.splice.sites import has_two_ends


def load_heads(path: str, device: torch.device, dtype: torch.dtype, scales: Sequence[float] | None) -> Any:
    """The crosscoder there; scales: of each head, or None. InputError for what cannot be loaded or is no crosscoder."""
    try:
        place = Path(path) if Path(path).exists() else hub.fetch(path)
        if form_of(place) in (None, llamascopium):
            return load_crosscoder(place, device=device, dtype=dtype, input_scale=scales)
        if scales is not None:
            raise InputError("--head-scale: the files of a weakly causal crosscoder hold all of it")
        found = load_cross_layer(place, device=device, dtype=dtype)
    except ImportError as error:
        raise missing_extra("safetensors", "reading dictionaries of several layers") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        told = first_line(error).replace("input_scale:", "--head-scale:")
        raise InputError(f"--crosscoder {path}: {told}") from error
    if not isinstance(found, CrossLayerTranscoder):
        raise InputError(f"--crosscoder {path}: it holds transcoders, one for each layer; give --transcoders")
    if found.sites is not None and any(has_two_ends(site) for site in found.sites):
        raise InputError(f"--crosscoder {path}: it holds a cross-layer transcoder; give --clt")
    return found
