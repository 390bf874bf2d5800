"""An SAE of some of an SAE's latents: an allow-list in the encoder."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from saekernels.ops import _check
from saekernels.sae.activations import AbsTopK, GroupMax, TopK
from saekernels.sae.module import SAE

_ROWS = ("W_enc", "W_dec", "b_enc", "b_gate", "b_mag", "r_mag")


def restricted(sae: SAE, latents: Tensor) -> SAE:
    """The SAE in which only these latents exist; latent i of it is latents[i].

    Selection is among them alone: a TopK takes its k (or all, if they are fewer) largest of their pre-activations, as
    it would if the others' were minus infinity. Only their rows of the encoder are read, so this is exact and nothing
    of size tokens x latents exists. Biases of input and output, normalisation and skip connection are shared; rows are
    copied.

    Args:
        latents: [m] int64, m >= 1, each once.

    Raises ValueError for a GroupMax, whose groups fall apart, and for latents that are not such.
    """
    if isinstance(sae.activation, GroupMax):
        raise ValueError(f"sae: got {sae.activation}, need an activation that is not by groups of latents")
    if latents.dim() != 1 or latents.dtype != torch.int64 or not len(latents):
        raise ValueError(f"latents: got {latents.dtype} of shape {list(latents.shape)}, need int64 [m] with m >= 1")
    _check.indices_in_range(latents, sae.n_latents, "latents")
    if latents.unique().numel() != latents.numel():
        raise ValueError("latents: got some of them more than once, need each once")
    made = copy.copy(sae)
    made._prepared, made._seen = None, None
    made.n_latents = len(latents)
    if isinstance(sae.activation, TopK | AbsTopK):
        made.activation = replace(sae.activation, k=min(sae.activation.k, len(latents)))
    made._parameters = dict(sae._parameters)
    by_latent = (*_ROWS, "threshold")
    for name in by_latent:
        rows = sae._parameters.get(name)
        if rows is not None:
            own = rows.detach()[latents.to(rows.device)]
            made._parameters[name] = nn.Parameter(own, requires_grad=False)
    return made
