"""Gemma Scope (params.npz) and Gemma Scope 2 (params.safetensors): JumpReLU SAEs and transcoders of Google DeepMind.

b_dec is not taken from the input. Embedding SAEs were trained on embeddings times sqrt(d); here they take the
embeddings themselves. Cross-layer transcoders write to several layers and are refused.
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.files import FormatError, Tensors, refuse_k, refuse_scale
from saekernels.formats.pickles import read_npz
from saekernels.sae.activations import JumpReLU

NAME = "Gemma Scope"
FILES = "params.npz or params.safetensors"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}


def find(path: Path) -> Path | None:
    """The parameter file, given it or its folder."""
    candidates = [path] if path.is_file() else [path / "params.npz", path / "params.safetensors"]
    return next((one for one in candidates if one.name in ("params.npz", "params.safetensors") and one.is_file()), None)


def read(path: Path, input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The SAE or transcoder of a parameter file."""
    refuse_k(k, path)
    refuse_scale(input_scale, path)
    tensors = read_npz(path) if path.suffix == ".npz" else Tensors(path)
    names = {lower: lower if lower in tensors else name for lower, name in _NAMES.items()}
    if tensors.dimensions(names["w_dec"]) == 3:
        raise FormatError(f"{path}: a cross-layer transcoder, which writes to several layers and is no single SAE")
    d_in, n_latents = tensors.shape(names["w_enc"])
    d_out = tensors.shape(names["w_dec"])[1]
    state: dict[str, Tensor] = {
        "W_enc": tensors.take(names["w_enc"], d_in, n_latents).T,
        "W_dec": tensors.take(names["w_dec"], n_latents, d_out),
        "b_enc": tensors.take("b_enc", n_latents),
        "b_dec": tensors.take("b_dec", d_out),
        "threshold": tensors.take("threshold", n_latents),
    }
    if "affine_skip_connection" in tensors:
        state["W_skip"] = tensors.take("affine_skip_connection", d_in, d_out).T
    if "scaling_factor" in tensors:
        factor = tensors.take("scaling_factor", n_latents)
        state["W_dec"] = state["W_dec"] * factor[:, None]
    tensors.done()
    if any("embedding" in part for part in path.parts[-4:-1]):
        state["W_enc"], state["W_dec"] = state["W_enc"] / math.sqrt(d_in), state["W_dec"] * math.sqrt(d_in)
    return build(path, state, JumpReLU())
