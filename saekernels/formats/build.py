"""From tensors in this library's layout to an SAE: the last step of every reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from saekernels.activations import Activation, Normalization
from saekernels.formats.files import FormatError
from saekernels.sae import SAE


def build(
    path: Path,
    state: Mapping[str, Tensor],
    activation: Activation,
    *,
    pre_bias: str = "none",
    normalization: Normalization | None = None,
    rescale_by_decoder_norm: bool = False,
    dtype: torch.dtype | None = None,
) -> SAE:
    """An SAE that holds these tensors: W_enc [F, d_in], W_dec [F, d_out], and what its activation needs.

    dtype: of the weights, W_enc's by default; thresholds of half-precision weights stay in float32, because rounding
    moves them by up to 0.4 %. Raises FormatError, which names `path`, for sizes or values that no SAE can have.
    """
    n_latents, d_in = state["W_enc"].shape
    d_out = state["W_dec"].shape[1]
    dtype = dtype or state["W_enc"].dtype
    try:
        sae = SAE(
            d_in,
            n_latents,
            activation,
            d_out=d_out,
            pre_bias=pre_bias,
            normalization=normalization,
            rescale_by_decoder_norm=rescale_by_decoder_norm,
            skip="W_skip" in state,
            device="meta",
        )
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from error
    half = dtype in (torch.bfloat16, torch.float16)
    kept = {name: value.to(torch.float32 if half and name == "threshold" else dtype) for name, value in state.items()}
    sae.load_state_dict({name: torch.nn.Parameter(value.contiguous()) for name, value in kept.items()}, assign=True)
    return sae
