"""ckkissane's crosscoder-model-diff-replication and neelnanda-io's Crosscoders: tensors in a torch file, a config.

Both train on activations times a factor per model or layer, which is in no file of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saekernels.crosslayer.crosscoder import Crosscoder
from saekernels.formats.config import Config, told
from saekernels.formats.crosscoders.build import (
    Asked,
    build,
    config_beside,
    refuse_alphas,
    refuse_size,
    refuse_unknown,
)
from saekernels.formats.files import FormatError
from saekernels.formats.pickles import tensors_of
from saekernels.sae.activations import ReLU
from saekernels.sae.metadata import Metadata

NAME = "crosscoder (ckkissane, neelnanda)"
FILES = "cfg.json + cc_weights.pt, or N_cfg.json + N.pt"
# How the weights came about, and what was read.
_KNOWN = """
    seed batch_size buffer_mult lr num_tokens l1_coeff beta1 beta2 d_in dict_size seq_len enc_dtype model_name site
    device model_batch_size log_every log_interval save_every dec_init_norm hook_point wandb_project wandb_entity name
    n_models n_layers
""".split()  # noqa: SIM905


def claims(found: Mapping[str, Any]) -> bool:
    """Whether a file's entries are of this format."""
    return isinstance(found.get("W_enc"), Tensor) and found["W_enc"].dim() == 3


def read(path: Path, found: Mapping[str, Any], asked: Asked) -> Crosscoder:
    """The crosscoder of a file."""
    config = config_beside(path, f"{path.stem}_cfg.json", "cfg.json")
    if config is None:
        raise FormatError(f"{path}: need {path.stem}_cfg.json or cfg.json beside it")
    tensors = tensors_of(path, found)
    heads, d, latents = tensors.shape("W_enc", 3)
    state = {
        "W_enc": tensors.take("W_enc", heads, d, latents).permute(2, 0, 1),
        "W_dec": tensors.take("W_dec", latents, heads, d),
        "b_enc": tensors.take("b_enc", latents),
        "b_dec": tensors.take("b_dec", heads, d),
    }
    tensors.done()
    for key, size in (("d_in", d), ("dict_size", latents), ("n_models", heads), ("n_layers", heads)):
        refuse_size(config, key, size, path)
    refuse_unknown(config, _KNOWN)
    refuse_alphas(asked, path)
    if asked.input_scale is None:
        raise FormatError(
            f"input_scale: {path} was trained on activations times a factor per head, which is in no file; need "
            f"{heads} numbers, sqrt(d) / mean norm of what each head reads, or 1 where there was none"
        )
    metadata = Metadata(
        NAME, model=told(config, "model_name", str), prepend_bos=True, context=told(config, "seq_len", int)
    )
    return build(path, state, ReLU(), metadata, sites=_sites(config, heads), input_scale=asked.input_scale)


def _sites(config: Config, heads: int) -> list[str] | None:
    """One hook point of several models; else the site of every layer of a model, which neelnanda-io's read."""
    point, site = (told(config, name, str) for name in ("hook_point", "site"))
    if point is not None:
        return [point] * heads
    return None if site is None else [f"blocks.{layer}.hook_{site}" for layer in range(heads)]
