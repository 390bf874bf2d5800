"""OpenAI's sparse_autoencoder: one .pt file per layer with pre_bias, latent_bias, encoder.weight, decoder.weight.

TopK autoencoders normalise their input by LayerNorm (eps 1e-5, unbiased std) and undo it; ReLU ones do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saekernels.formats.checkpoint import Checkpoint, build
from saekernels.formats.config import integer
from saekernels.formats.files import FormatError, refuse_k, refuse_scale
from saekernels.formats.pickles import tensors_of
from saekernels.sae.activations import Activation, LayerNorm, ReLU, TopK
from saekernels.sae.metadata import Metadata

NAME = "OpenAI sparse_autoencoder"
FILES = "a .pt file with pre_bias and latent_bias"
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def claims(found: Mapping[str, Any]) -> bool:
    """Whether a torch file's dictionary is of this format."""
    return "latent_bias" in found and "pre_bias" in found


def read(path: Path, found: Mapping[str, Any], input_scale: float | None = None, k: int | None = None) -> Checkpoint:
    """The SAE of a file that `read_pt` has read."""
    refuse_scale(input_scale, path)
    refuse_k(k, path)
    tensors = tensors_of(path, found)
    n_latents, d = tensors.shape("encoder.weight")
    state = {
        "W_enc": tensors.take("encoder.weight", n_latents, d),
        "W_dec": tensors.take("decoder.weight", d, n_latents).T,
        "b_enc": tensors.take("latent_bias", n_latents),
        "b_dec": tensors.take("pre_bias", d),
    }
    tensors.drop(*_STATISTICS)
    tensors.drop(*(name for name in found if name.startswith("activation")))
    tensors.done()
    activation = _activation(found, path)
    norm = LayerNorm() if isinstance(activation, TopK) else None
    # Released for GPT-2 small, loaded into TransformerLens without centred writing weights.
    options = {"center_writing_weights": False}
    metadata = Metadata(NAME, model_options=options)
    return build(path, state, activation, metadata, pre_bias="b_dec", normalization=norm)


def _activation(found: Mapping[str, Any], path: Path) -> Activation:
    name = found.get("activation", "ReLU")
    if name == "ReLU":
        return ReLU()
    options = found.get("activation_state_dict", {})
    if name != "TopK" or not isinstance(options, Mapping):
        raise FormatError(f"{path}: 'activation' is {name!r:.40}, need 'TopK' or 'ReLU'")
    after = options.get("postact_fn", "ReLU")
    if after not in ("ReLU", "Identity"):
        raise FormatError(f"{path}: 'postact_fn' is {after!r:.40}, need 'ReLU' or 'Identity'")
    return TopK(integer(options, "k", path), relu=after == "ReLU")
