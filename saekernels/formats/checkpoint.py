"""From tensors in this library's layout to an SAE: the last step of every reader."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekernels.formats.files import FormatError
from saekernels.sae.activations import Activation, Normalization
from saekernels.sae.metadata import Metadata
from saekernels.sae.module import SAE

# Tensors with a row for each latent; a BatchTopK's threshold is one number.
_BY_LATENT = ("W_enc", "W_dec", "b_enc", "b_gate", "b_mag", "r_mag", "threshold")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by name, views of the file where it is mapped into memory, and what they make.

    options: the keywords of `SAE`. metadata: what the file says beside its function.
    dtype: of the weights; thresholds of half-precision weights stay in float32, because rounding moves them by up to
    0.4 %.
    """

    path: Path
    state: Mapping[str, Tensor]
    activation: Activation
    options: Mapping[str, Any]
    dtype: torch.dtype
    metadata: Metadata

    @property
    def n_latents(self) -> int:
        """F, the rows of W_enc."""
        return self.state["W_enc"].shape[0]

    def dtype_of(self, name: str) -> torch.dtype:
        """Of a tensor once it is loaded."""
        half = self.dtype in (torch.bfloat16, torch.float16)
        return torch.float32 if half and name == "threshold" else self.dtype

    def part(self, rows: range, activation: Activation) -> Checkpoint:
        """The checkpoint of these latents alone, with this activation."""
        return replace(self, state=rows_in(self.state, rows), activation=activation)

    def module(self) -> SAE:
        """The SAE without values. Raises FormatError, which names the file, for sizes that no SAE can have."""
        n_latents, d_in = self.state["W_enc"].shape
        d_out = self.state["W_dec"].shape[1]
        try:
            return SAE(d_in, n_latents, self.activation, d_out=d_out, device="meta", **self.options)
        except ValueError as error:
            raise FormatError(f"{self.path}: {error}") from error

    def sae(self) -> SAE:
        """The SAE with these tensors."""
        kept = {name: value.to(self.dtype_of(name)) for name, value in self.state.items()}
        sae = self.module()
        sae.load_state_dict({name: torch.nn.Parameter(value.contiguous()) for name, value in kept.items()}, assign=True)
        sae.metadata = self.metadata
        if odd := [repr(name) for name, value in kept.items() if not _is_sound(name, value)]:
            warnings.warn(f"{self.path}: {', '.join(odd)}: values that are no finite numbers", stacklevel=4)
        return sae


def _is_sound(name: str, value: Tensor) -> bool:
    """Whether all values are finite; a threshold of infinity is a latent that is never active."""
    if name == "threshold":
        return not bool(value.isnan().any())
    # A sum is one pass over mapped memory and makes no mask; of finite values it can overflow.
    total = value.sum(dtype=torch.promote_types(value.dtype, torch.float32))
    return bool(total.isfinite()) or bool(value.isfinite().all())


def of_thresholds(state: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that thresholds are made in: W_enc's, at least float32."""
    return torch.promote_types(state["W_enc"].dtype, torch.float32)


def widest(state: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that holds all tensors exactly; thresholds, which have their own, count from float64 on."""
    dtypes = [value.dtype for name, value in state.items() if name != "threshold" or value.dtype is torch.float64]
    return reduce(torch.promote_types, dtypes)


def rows_in(state: Mapping[str, Tensor], rows: range) -> dict[str, Tensor]:
    """Of an SAE's tensors those of some latents: these rows, cloned, where a tensor has one for each latent."""
    return {
        name: value[rows.start : rows.stop].clone(memory_format=torch.contiguous_format)
        if name in _BY_LATENT and value.dim()
        else value
        for name, value in state.items()
    }


def build(
    path: Path,
    state: Mapping[str, Tensor],
    activation: Activation,
    metadata: Metadata,
    *,
    pre_bias: str = "none",
    normalization: Normalization | None = None,
    rescale_by_decoder_norm: bool = False,
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """An SAE's tensors, W_enc [F, d_in], W_dec [F, d_out] and what its activation needs, found to make an SAE.

    dtype: of the weights; by default the widest among the tensors, so that biases beside half-precision matrices keep
    their bits. Raises FormatError, which names `path`, for sizes that no SAE can have.
    """
    options = {
        "pre_bias": pre_bias,
        "normalization": normalization,
        "rescale_by_decoder_norm": rescale_by_decoder_norm,
        "skip": "W_skip" in state,
    }
    made = Checkpoint(path, state, activation, options, dtype or widest(state), metadata)
    wanted = made.module().state_dict().keys()
    for what, names in (("unexpected", state.keys() - wanted), ("missing", wanted - state.keys())):
        if names:
            raise FormatError(f"{path}: {what} tensors {sorted(names)} for {activation}")
    return made
