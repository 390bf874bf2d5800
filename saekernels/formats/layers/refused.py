"""Folders that look like dictionaries that span layers, and compute something else: refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from saekernels.formats.files import FormatError, read_safetensors

NAME = "clt-training"
FILES = "a folder for each layer, with W_decs.N and post_encs.N"
_OWN = ("W_decs.", "b_decs.", "post_encs.", "post_enc_scales.", "W_skips.")


def find(folder: Path) -> bool:
    """Whether the first layer's folder has tensors of clt-training's names."""
    files = sorted(folder.glob("*/sae.safetensors")) + sorted(folder.glob("sae.safetensors"))
    return bool(files) and any(name.startswith(_OWN) for name in read_safetensors(files[0]))


def read(folder: Path, k: int | None = None) -> NoReturn:
    """Always raises FormatError."""
    raise FormatError(
        f"{folder}: a cross-layer transcoder of clt-training, whose codes go through an affine map before each "
        "target's decoder, which no cross-layer transcoder here has"
    )
