"""Transcoders of circuit-tracer: layer_N.safetensors, rows are latents; ReLU, or JumpReLU with thresholds."""

from __future__ import annotations

from pathlib import Path

from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.files import FormatError, Tensors, refuse_k, refuse_scale
from saekernels.sae.activations import Activation, JumpReLU, ReLU

NAME = "circuit-tracer"
FILES = "layer_N.safetensors"


def find(path: Path) -> Path | None:
    """The layer's file, which has to be named: a folder holds one for each layer."""
    own = path.is_file() and path.suffix == ".safetensors" and path.name not in ("params.safetensors",)
    return path if own else None


def read(path: Path, input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The transcoder of one layer. Cross-layer transcoders (W_enc_N) are refused."""
    refuse_scale(input_scale, path)
    refuse_k(k, path)
    tensors = Tensors(path)
    if "W_enc" not in tensors or tensors.dimensions("W_dec") == 3:
        raise FormatError(f"{path}: need W_enc and W_dec of one layer; cross-layer transcoders are no single SAE")
    n_latents, d_in = tensors.shape("W_enc")
    d_out = tensors.shape("W_dec")[1]
    state = {
        "W_enc": tensors.take("W_enc", n_latents, d_in),
        "b_enc": tensors.take("b_enc", n_latents),
        "W_dec": tensors.take("W_dec", n_latents, d_out),
        "b_dec": tensors.take("b_dec", d_out),
    }
    activation: Activation = ReLU()
    for name in ("threshold", "activation_function.threshold"):
        if name in tensors:
            state["threshold"], activation = tensors.take(name, n_latents), JumpReLU()
    if "W_skip" in tensors:
        state["W_skip"] = tensors.take("W_skip", d_out, d_in)
    tensors.done()
    return build(path, state, activation)
