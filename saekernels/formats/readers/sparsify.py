"""EleutherAI sparsify: cfg.json + sae.safetensors (eai-sparsify 1.x and the older sae package)."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from saekernels.formats.checkpoint import Checkpoint, build, widest
from saekernels.formats.config import boolean, integer, read_json, text
from saekernels.formats.files import FormatError, Tensors, refuse_k
from saekernels.sae.activations import GroupMax, Scale, TopK
from saekernels.sae.metadata import Metadata

NAME = "sparsify"
WEIGHTS = "sae.safetensors"
FILES = f"cfg.json + {WEIGHTS}"
_MODULE = re.compile(r"(\w+\.)+\d+(\.\w+)*|embed\w*")
# How the weights were trained.
_WITHOUT_EFFECT = ("normalize_decoder", "multi_topk", "auxk_alpha")


def find(path: Path) -> Path | None:
    """The folder of a sparsify checkpoint, given it or a file of the checkpoint."""
    if path.is_file() and path.name not in (WEIGHTS, "cfg.json"):
        return None
    folder = path if path.is_dir() else path.parent
    return folder if (folder / WEIGHTS).is_file() else None


def read(folder: Path, input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The SAE or transcoder of a sparsify folder.

    Encoder and decoder rows are latents; the input is centred by b_dec unless the config says `transcode`.
    """
    path = folder / "cfg.json"
    config = read_json(path)
    if boolean(config, "signed", path):
        raise FormatError(f"{path}: 'signed' is true; signed coders of old versions are not supported")
    d_in = integer(config, "d_in", path)
    by_factor = d_in * integer(config, "expansion_factor", path, 32)
    given = {"num_latents": config.get("num_latents") or by_factor}
    n_latents = integer(given, "num_latents", path)
    refuse_k(k, path)
    k = integer(config, "k", path)
    kinds: dict[str, type[TopK] | type[GroupMax]] = {"topk": TopK, "groupmax": GroupMax}
    activation = text(config, "activation", path, "topk")
    if activation not in kinds:
        raise FormatError(f"{path}: 'activation' is {activation!r}, need one of {list(kinds)}")
    skip, transcode = boolean(config, "skip_connection", path), boolean(config, "transcode", path)

    tensors = Tensors(folder / WEIGHTS)
    state = {
        "W_enc": tensors.take("encoder.weight", n_latents, d_in),
        "b_enc": tensors.take("encoder.bias", n_latents),
        "W_dec": tensors.take("W_dec", n_latents, d_in),
        "b_dec": tensors.take("b_dec", d_in),
    }
    if skip:
        state["W_skip"] = tensors.take("W_skip", d_in, d_in)
    tensors.done()
    dtype = state["W_dec"].dtype  # as there: one for all tensors, that of the first by name
    if widest(state) is not dtype:
        warnings.warn(f"{tensors.path}: its tensors are rounded to {dtype}, W_dec's, as in sparsify", stacklevel=4)
    normalization = None if input_scale is None else Scale(input_scale)
    module = _module(folder)
    reads = f"{module}@input" if transcode and module else module
    metadata = Metadata(NAME, reads=reads, writes=module, ignored=config.unknown(_WITHOUT_EFFECT))
    bias = "none" if transcode else "b_dec"
    return build(path, state, kinds[activation](k), metadata, pre_bias=bias, normalization=normalization, dtype=dtype)


def _module(folder: Path) -> str | None:
    """The module in the model's body, whose name a folder has; one of several seeds lies in that folder."""
    name = folder.parent.name if folder.name.startswith("seed") else folder.name
    return name if _MODULE.fullmatch(name) else None
