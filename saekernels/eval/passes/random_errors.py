"""The error of an SAE, with its size kept and its direction thrown away: the norm-matched random baseline.

SAE errors hurt more than random errors of the same norm would (Gurnee 2024), so what they hit is not noise.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from saekernels.eval.text.batches import Batch


class RandomErrors:
    """target + |target - x_hat| * u, u uniform on the unit sphere, drawn from the seed, the site and the window.

    The directions do not depend on the batch that a window is in.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._norms: dict[tuple[str, str], Tensor] = {}

    def note(self, run: str, site: str, x_hat: Tensor, target: Tensor) -> None:
        """Keep the norms of a spliced run's errors, [...] fp32."""
        self._norms[run, site] = (target.float() - x_hat.float()).norm(dim=-1)

    def forget(self) -> None:
        """Let go of the last batch's norms."""
        self._norms.clear()

    def replace(self, run: str, site: str, batch: Batch, target: Tensor) -> Tensor:
        """What stands for `target` at this site: as far off as the SAE's was in the spliced run named `run`."""
        norms = self._norms[run, site].to(target.device)
        width = target.numel() // batch.ids.numel()
        noise = torch.zeros(*batch.ids.shape, width)
        for row, window in enumerate(batch.windows):
            place = zlib.crc32(f"{site} {window.document} {window.start}".encode())
            generator = torch.Generator().manual_seed((self.seed * 2654435761 + place) % 2**63)
            noise[row, : len(window.ids)] = torch.randn(len(window.ids), width, generator=generator)
        # [..., width] over the positions that have a norm each: tokens, or the heads of each token.
        noise = noise.to(target.device).view(*norms.shape, -1)
        scale = norms / noise.norm(dim=-1).clamp_min(1e-30)
        return (target.float() + (noise * scale.unsqueeze(-1)).reshape(target.shape)).to(target.dtype)
