"""Goodfire: one .pt or .pth file with encoder_linear and decoder_linear; ReLU, nothing taken from the input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.files import refuse_k, refuse_scale
from saekernels.formats.pickles import tensors_of
from saekernels.sae.activations import ReLU
from saekernels.sae.metadata import Metadata

NAME = "Goodfire"
FILES = "a .pt or .pth file with encoder_linear.weight"


def claims(found: Mapping[str, Any]) -> bool:
    """Whether a torch file's dictionary is of this format."""
    return "encoder_linear.weight" in found


def read(path: Path, found: Mapping[str, Any], input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The SAE of a file that `read_pt` has read."""
    refuse_scale(input_scale, path)
    refuse_k(k, path)
    tensors = tensors_of(path, found)
    n_latents, d = tensors.shape("encoder_linear.weight")
    state = {
        "W_enc": tensors.take("encoder_linear.weight", n_latents, d),
        "b_enc": tensors.take("encoder_linear.bias", n_latents),
        "W_dec": tensors.take("decoder_linear.weight", d, n_latents).T,
        "b_dec": tensors.take("decoder_linear.bias", d),
    }
    tensors.done()
    return build(path, state, ReLU(), Metadata(NAME))
