"""Gemma Scope (params.npz) and Gemma Scope 2 (params.safetensors): JumpReLU SAEs and transcoders of Google DeepMind.

b_dec is not taken from the input. Embedding SAEs were trained on the rows of the embedding matrix; here, as in SAELens,
they take what the model's layers get, those rows times sqrt(d) (TransformerLens' hook_embed; the output of
`model.embed_tokens` since transformers 5.4, which before gave the rows themselves). Cross-layer transcoders write to
several layers and are refused.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.config import Config, read_json, told
from saekernels.formats.files import FormatError, Tensors, refuse_k, refuse_scale
from saekernels.formats.looking import is_looking
from saekernels.formats.pickles import read_npz
from saekernels.sae.activations import JumpReLU
from saekernels.sae.metadata import Metadata

NAME = "Gemma Scope"
PARAMETERS = ("params.npz", "params.safetensors")
FILES = "params.npz or params.safetensors (+ config.json)"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}
_WITHOUT_EFFECT = ("width", "l0", "num_params", "layer", "site", "type", "dtype")
# The repository's name, and the hook points of TransformerLens that its folders are of.
_REPOSITORY = re.compile(r"gemma-scope-(?P<size>\d+b)-(?P<tuned>pt|it)-(?P<site>res|mlp|att|transcoders)")
_HOOKS = {
    "res": ("hook_resid_post", "hook_resid_post"),
    "mlp": ("hook_mlp_out", "hook_mlp_out"),
    "att": ("attn.hook_z", "attn.hook_z"),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}


def find(path: Path) -> Path | None:
    """The parameter file, given it or its folder."""
    candidates = [path] if path.is_file() else [path / name for name in PARAMETERS]
    return next((one for one in candidates if one.name in PARAMETERS and one.is_file()), None)


def read(path: Path, input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The SAE or transcoder of a parameter file."""
    refuse_k(k, path)
    refuse_scale(input_scale, path)
    beside = path.parent / "config.json"
    config = read_json(beside) if beside.is_file() else Config(path, {})
    tensors = read_npz(path) if path.suffix == ".npz" else Tensors(path)
    names = {lower: lower if lower in tensors else name for lower, name in _NAMES.items()}
    if 3 in (tensors.dimensions(names["w_enc"]), tensors.dimensions(names["w_dec"])):
        raise FormatError(
            f"{path}: a cross-layer transcoder, which writes to several layers and is no single SAE: "
            "saekernels.load_cross_layer reads its folder"
        )
    _check(config, "affine_skip_connection" in tensors)
    d_in, n_latents = tensors.shape(names["w_enc"])
    d_out = tensors.shape(names["w_dec"])[1]
    width = told(config, "width", int)
    if width not in (None, n_latents):
        raise FormatError(f"{config.path}: 'width' is {width}, but {path.name} has {n_latents} latents")
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
        if not torch.equal(factor, torch.ones_like(factor)):
            raise FormatError(f"{path}: 'scaling_factor' is not 1 for all latents, and nothing says what it scales")
    tensors.done()
    embedding = any("embedding" in part for part in path.parts[-4:-1])
    if embedding and not is_looking():
        state["W_enc"], state["W_dec"] = state["W_enc"] / math.sqrt(d_in), state["W_dec"] * math.sqrt(d_in)
    return build(path, state, JumpReLU(), _metadata(path, config, embedding, d_in))


def _check(config: Config, skip: bool) -> None:
    """FormatError where the config of Gemma Scope 2 speaks of another function than the tensors."""
    architecture = config.get("architecture", "jump_relu")
    if str(architecture).lower().replace("_", "") != "jumprelu":
        raise FormatError(f"{config.path}: 'architecture' is {architecture!r:.40}, need 'jump_relu'")
    affine = config.get("affine_connection", config.get("affine_skip_connection", skip))
    if affine is not skip:
        has = "has" if skip else "has no"
        raise FormatError(f"{config.path}: 'affine_connection' is {affine!r:.40}, but the file {has} such matrix")


def _metadata(path: Path, config: Config, embedding: bool, d_in: int) -> Metadata:
    """What config.json says; for files without one, what the names of repository and folders say."""
    reads, writes = (told(config, f"hf_hook_point_{end}", str) for end in ("in", "out"))
    model, where = told(config, "model_name", str), str(path.resolve().parent)
    repository, layer = _REPOSITORY.search(where), re.search(r"layer_(\d+)", where)
    if repository and model is None:
        model = f"google/gemma-2-{repository['size']}" + ("-it" if repository["tuned"] == "it" else "")
    other = {"scaled": f"W_enc / sqrt({d_in}), W_dec * sqrt({d_in}), b_dec as it is"} if embedding else {}
    if reads is None and embedding:
        reads = writes = "hook_embed"
    elif reads is None and repository and layer:
        reads, writes = (f"blocks.{layer[1]}.{hook}" for hook in _HOOKS[repository["site"]])
    ignored = config.unknown(_WITHOUT_EFFECT)
    return Metadata(NAME, model=model, reads=reads, writes=writes, ignored=ignored, other=other)
