"""Which latents have been silent for long."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saekernels.ops import _check
from saekernels.sae.codes import Codes


class DeadLatents(nn.Module):
    """How many tokens ago each latent was last active.

    Args:
        n_latents: F.
        after: a latent is dead when it was silent for more than this many tokens (Gao et al. 2024: 10 million).
    """

    silent: Tensor

    def __init__(self, n_latents: int, after: int) -> None:
        super().__init__()
        for name, value, least in (("n_latents", n_latents, 1), ("after", after, 0)):
            whole = _check.integer(value)
            if whole is None or whole < least:
                raise ValueError(f"{name}: got {value!r}, need an int of at least {least}")
        self.after = after
        self.register_buffer("silent", torch.zeros(n_latents, dtype=torch.int64))

    @torch.no_grad()
    def update(self, codes: Codes) -> None:
        """Count a batch: its tokens have passed, and its nonzero latents are alive (NaN is no sign of life)."""
        if codes.n_latents != self.silent.numel():
            raise ValueError(f"codes: got n_latents = {codes.n_latents}, need {self.silent.numel()}")
        self.silent += codes.tokens
        self.silent[codes.indices[codes.values.abs() > 0].long()] = 0

    def indices(self) -> Tensor:
        """The dead latents, int64 [n], ascending."""
        return (self.silent > self.after).nonzero()[:, 0]
