"""One function per activation: from inputs and weights to sparse entries, never through [tokens, latents]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from saekernels.ops import encode_threshold, encode_topk
from saekernels.ops.prepare import PreparedWeights
from saekernels.sae.activations import AbsTopK, BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK
from saekernels.sae.entries import positive

# values, indices, offsets (None where every token has k entries)
Entries = tuple[Tensor, Tensor, Tensor | None]


class EncoderParameters(Protocol):
    """What the encoders read: an `SAE`, or a live object of another tool at one call.

    W_enc [F, d]; b_enc, b_gate, b_mag, r_mag [F]; threshold [F] (JumpReLU), [] (BatchTopK) or
    None; pre_bias [d] or None.
    """

    rescale_by_decoder_norm: bool

    @property
    def n_latents(self) -> int: ...
    @property
    def W_enc(self) -> Tensor: ...
    @property
    def b_enc(self) -> Tensor | None: ...
    @property
    def pre_bias(self) -> Tensor | None: ...
    @property
    def threshold(self) -> Tensor | None: ...
    @property
    def b_gate(self) -> Tensor: ...
    @property
    def b_mag(self) -> Tensor: ...
    @property
    def r_mag(self) -> Tensor: ...
    def decoder_norms(self) -> Tensor: ...
    def prepared(self) -> PreparedWeights | None: ...


def scale_of(sae: EncoderParameters) -> Tensor | None:
    """[F], the decoder's norms where codes are pre-activations times them, as the encoders take them; else None."""
    return positive(sae.decoder_norms()) if sae.rescale_by_decoder_norm else None


def times(values: Tensor, indices: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Values, each times its latent's scale, if there is one, in a dtype; differentiable with respect to both.

    So that codes are rounded once, values are to be `wide` ones where there is a scale.
    """
    if scale is None:
        return values
    return (values * scale.index_select(0, indices.flatten()).view_as(values)).to(dtype)


def _top_k(sae: EncoderParameters, x: Tensor, k: int, activation: str) -> Entries:
    scale = scale_of(sae)
    values, indices = encode_topk(
        x,
        sae.W_enc,
        sae.b_enc,
        k=k,
        pre_bias=sae.pre_bias,
        scale=scale,
        activation=activation,
        prepared=sae.prepared(),
        wide=scale is not None,
    )
    return times(values, indices, scale, x.dtype), indices, None


def _group_max(sae: EncoderParameters, x: Tensor, k: int) -> Entries:
    """A top-1 of each group's own rows: the winner's latent is its place in the group plus the group's start."""
    W_enc, b_enc, scale = sae.W_enc, sae.b_enc, scale_of(sae)
    size = sae.n_latents // k
    values, indices = [], []
    for start in range(0, sae.n_latents, size):
        group = slice(start, start + size)
        bias, of_group = (None if one is None else one[group] for one in (b_enc, scale))
        top = encode_topk(x, W_enc[group], bias, k=1, pre_bias=sae.pre_bias, scale=of_group, wide=scale is not None)
        values.append(top.values)
        indices.append(top.indices + start)
    latents = torch.cat(indices, -1)
    return times(torch.cat(values, -1), latents, scale, x.dtype), latents, None


def _above(sae: EncoderParameters, x: Tensor) -> Entries:
    scale = scale_of(sae)
    # relu(pre) * (pre > threshold): a negative threshold lets nothing negative through.
    threshold = 0.0 if sae.threshold is None else sae.threshold.detach().clamp(min=0)
    if scale is not None:
        # Times a norm of 0 nothing is above 0, as small as the scale is that takes its place.
        threshold = torch.where(sae.decoder_norms().detach() == 0, torch.inf, threshold)
    values, indices, offsets = encode_threshold(
        x,
        sae.W_enc,
        sae.b_enc,
        threshold,
        pre_bias=sae.pre_bias,
        scale=scale,
        prepared=sae.prepared(),
        wide=scale is not None,
    )
    return times(values, indices, scale, x.dtype), indices, offsets


def _gated(sae: EncoderParameters, x: Tensor) -> Entries:
    """One product serves gate and magnitude: both are affine in s = x @ W_enc.T."""
    s, indices, offsets = encode_threshold(
        x, sae.W_enc, None, -sae.b_gate.detach(), pre_bias=sae.pre_bias, prepared=sae.prepared(), wide=True
    )
    latents = indices.long()
    values = (sae.r_mag.to(s.dtype).exp()[latents] * s + sae.b_mag[latents]).relu()
    return values.to(x.dtype), indices, offsets


ENCODERS: dict[type, Callable[[EncoderParameters, Tensor, Any], Entries]] = {
    ReLU: lambda sae, x, _: _above(sae, x),
    TopK: lambda sae, x, activation: _top_k(sae, x, activation.k, "relu" if activation.relu else "none"),
    AbsTopK: lambda sae, x, activation: _top_k(sae, x, activation.k, "abs"),
    GroupMax: lambda sae, x, activation: _group_max(sae, x, activation.k),
    JumpReLU: lambda sae, x, _: _above(sae, x),
    BatchTopK: lambda sae, x, _: _above(sae, x),
    Gated: lambda sae, x, _: _gated(sae, x),
}
