"""Controls made from a trained SAE: what it would be worth if its directions, or its encoder, were random.

A control has the SAE's sizes, biases, thresholds and activation, so only what it is named for differs.
"""

from __future__ import annotations

import copy
import zlib

import torch
from torch import Tensor, nn

from saekernels.sae.module import SAE

CONTROLS = ("shuffled_decoder", "random_decoder", "random_encoder")
"""shuffled_decoder: the same codes, decoder directions dealt out among the latents anew; random_decoder: the same
codes, decoder directions uniform on the sphere; random_encoder: encoder directions uniform on the sphere. Each row
keeps its own norm."""


def control_of(sae: SAE, kind: str, seed: int = 0) -> SAE:
    """A control of an SAE, one of CONTROLS; it shares every tensor with the SAE but the one that it is named for.

    seed: of the order or the directions; the same seed gives the same control, for whatever device and dtype.

    Raises ValueError for another kind, TypeError for anything but a `saekernels.SAE` that holds its
    own weights.
    """
    if kind not in CONTROLS:
        raise ValueError(f"kind: got {kind!r}, need one of {', '.join(CONTROLS)}")
    if not isinstance(sae, SAE) or "W_dec" not in sae._parameters:
        raise TypeError(f"sae: got {type(sae).__name__}, need a saekernels.SAE that holds its own weights")
    generator = torch.Generator().manual_seed((seed * 2654435761 + zlib.crc32(kind.encode())) % 2**63)
    name = "W_enc" if kind == "random_encoder" else "W_dec"
    rows = getattr(sae, name).detach()
    norms = rows.float().norm(dim=1, keepdim=True)
    if kind == "shuffled_decoder":
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        directions = (rows.float() / norms.clamp_min(1e-30))[order]
    else:
        directions = _directions(rows.shape, generator).to(rows.device)
    made = copy.copy(sae)
    made._parameters = dict(sae._parameters)
    made._parameters[name] = nn.Parameter((directions * norms).to(rows.dtype), requires_grad=False)
    return made


def _directions(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Rows uniform on the unit sphere, fp32 on the CPU."""
    drawn = torch.randn(shape, generator=generator)
    return drawn / drawn.norm(dim=1, keepdim=True).clamp_min(1e-30)
