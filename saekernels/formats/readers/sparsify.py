"""EleutherAI sparsify: cfg.json + sae.safetensors (eai-sparsify 1.x and the older sae package)."""

from __future__ import annotations

from pathlib import Path

from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.files import FormatError, Tensors, boolean, integer, read_config, refuse_k, text
from saekernels.sae.activations import GroupMax, Scale, TopK

NAME = "sparsify"
WEIGHTS = "sae.safetensors"
FILES = f"cfg.json + {WEIGHTS}"


def find(path: Path) -> Path | None:
    """The folder of a sparsify checkpoint, given it or a file in it."""
    folder = path if path.is_dir() else path.parent
    return folder if (folder / WEIGHTS).is_file() else None


def read(folder: Path, input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The SAE or transcoder of a sparsify folder.

    Encoder and decoder rows are latents; the input is centred by b_dec unless the config says `transcode`.
    """
    path = folder / "cfg.json"
    config = read_config(path)
    if boolean(config, "signed", path):
        raise FormatError(f"{path}: 'signed' is true; signed coders of old versions are not supported")
    d_in = integer(config, "d_in", path)
    given = {"num_latents": config.get("num_latents") or d_in * integer(config, "expansion_factor", path, 32)}
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
    normalization = None if input_scale is None else Scale(input_scale)
    return build(
        path, state, kinds[activation](k), pre_bias="none" if transcode else "b_dec", normalization=normalization
    )
