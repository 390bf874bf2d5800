"""AuxK of the classes that choose the largest: dead latents reconstruct what the others have left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from saekernels.adapters.weights import CurrentWeights
from saekernels.ops import decode
from saekernels.sae.entries import encode_among

# What the tool's own code refuses to reconstruct a residual through.
NORMALISED = ("constant_norm_rescale", "layer_norm")


@dataclass
class Batch:
    """One step: sae_in [T, d_in], which the encoder reads; norms [F] of the decoder's rows, or None."""

    module: Any
    weights: CurrentWeights
    sae_in: Tensor
    norms: Tensor | None


def auxiliary(
    batch: Batch,
    step_input: TrainStepInput,
    out: Tensor,
    prefixes: list[Tensor],
    widths: list[int],
    activation: str = "none",
) -> Tensor:
    """How badly dead latents reconstruct what is missing, of all latents or level by level; a scalar.

    out, prefixes: the reconstruction and, of Matryoshka's `widths`, that of every level. activation: "abs" where the
    largest magnitudes are chosen.
    """
    dead, cfg = step_input.dead_neuron_mask, batch.module.cfg
    if dead is None or not bool(dead.any()):
        return out.new_tensor(0.0)
    bounds, decoded = [0, len(dead)], [out]
    if widths and cfg.use_matryoshka_aux_loss:
        bounds, decoded = [0, *widths], prefixes
    losses = []
    for start, end, partial in zip(bounds, bounds[1:], decoded, strict=False):
        latents = dead[start:end].nonzero()[:, 0] + start
        if len(latents):
            losses.append(_loss(batch, (step_input.sae_in - partial).detach(), latents, activation))
    return cfg.aux_loss_coefficient * torch.stack(losses).sum()


def _loss(batch: Batch, residual: Tensor, latents: Tensor, activation: str) -> Tensor:
    """How badly the best d_in / 2 of some latents [n] reconstruct a residual [T, d_in]; signed, scaled down for few."""
    W_enc, b_enc = batch.weights.W_enc, batch.module.b_enc
    at_most = residual.shape[-1] // 2
    scale, k = min(len(latents) / at_most, 1.0), min(at_most, len(latents))
    pre = encode_among(batch.sae_in, W_enc, b_enc, latents, k=k, scale=batch.norms, activation=activation)
    guess = decode(*pre, batch.weights.W_dec)
    return scale * (guess - residual).pow(2).sum(dim=-1).mean()
