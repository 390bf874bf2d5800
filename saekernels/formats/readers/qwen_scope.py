"""Qwen Scope: layerN.sae.pt; TopK without a ReLU, nothing taken from the input.

k is in the repository's name alone. Their model cards keep the k largest pre-activations as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.files import FormatError, refuse_scale
from saekernels.formats.pickles import tensors_of
from saekernels.sae.activations import TopK
from saekernels.sae.metadata import Metadata

NAME = "Qwen Scope"
FILES = "layerN.sae.pt"
_L0 = re.compile(r"-L0_(\d+)")
_LAYER = re.compile(r"layer[_.]?(\d+)")


def claims(found: Mapping[str, Any]) -> bool:
    """Whether a torch file's dictionary is of this format."""
    return {"W_enc", "W_dec", "b_enc", "b_dec"} == set(found)


def read(path: Path, found: Mapping[str, Any], input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The SAE of a file that `read_pt` has read; k from a folder named ...-L0_K, unless it is given."""
    refuse_scale(input_scale, path)
    tensors = tensors_of(path, found)
    n_latents, d = tensors.shape("W_enc")
    named = _L0.findall(str(path.resolve().parent))
    if k is not None and named and int(named[-1]) != k:
        raise FormatError(f"k: got {k}, but {path} is of a repository with L0_{named[-1]}")
    k = k if k is not None else int(named[-1]) if named else None
    if k is None:
        raise FormatError(f"{path}: k is in no file; give k, or keep the repository's name (...-L0_K) in the path")
    state = {
        "W_enc": tensors.take("W_enc", n_latents, d),
        "b_enc": tensors.take("b_enc", n_latents),
        "W_dec": tensors.take("W_dec", d, n_latents).T,
        "b_dec": tensors.take("b_dec", d),
    }
    tensors.done()
    try:
        activation = TopK(k, relu=False)
    except ValueError as error:
        raise FormatError(str(error)) from error
    layer = _LAYER.search(path.name)
    module = f"model.layers.{layer[1]}" if layer else None
    return build(path, state, activation, Metadata(NAME, reads=module, writes=module))
