"""What the checks of the gate are made of: tensors on a device, and comparisons that name the number that is off."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of values near 1: float32 sums of some hundred terms; a 16-bit result's own rounding.
LIMIT = {torch.float32: 3e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


class Wrong(Exception):
    """A check failed; the message says which number."""


def require(condition: bool, what: str) -> None:
    """Unlike an assertion, kept by every interpreter."""
    if not condition:
        raise Wrong(what)


class Bench:
    """Where checks run, and random tensors there."""

    def __init__(self, device: torch.device, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
        self.device, self.dtypes = device, dtypes
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).mul_(scale).to(dtype)

    def integers(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.device, dtype=dtype)


def near(name: str, got: Tensor, want: Tensor, limit: float) -> None:
    """Equal within `limit`, absolute below 1 and relative above; NaN where NaN is due."""
    require(got.shape == want.shape, f"{name}: shape {list(got.shape)}, need {list(want.shape)}")
    got, want = got.detach(), want.detach()
    both = got.isnan() & want.isnan()
    equal = got.double() == want.double()
    error = (got.double() - want.double()).abs() / want.double().abs().clamp(min=1)
    worst = error.masked_fill(both | equal, 0).nan_to_num(nan=torch.inf)
    require(
        not worst.numel() or float(worst.max()) <= limit, f"{name}: off by {float(worst.max()):.3g}, allowed {limit:g}"
    )


def same_bits(name: str, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
    for one, other in zip(first, second, strict=True):
        require(torch.equal(one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0)), f"{name}: other bits")


def best_of(name: str, scores: Tensor, codes: tuple[Tensor, Tensor], k: int, limit: float, activation: str) -> None:
    """The k best of float64 scores [T, F]; near ties may go either way."""
    values, indices = codes
    latents = indices.long()
    require(indices.dtype == torch.int32 and values.shape == indices.shape == (scores.shape[0], k), f"{name}: shapes")
    require(not bool((latents.sort(1).values.diff(dim=1) == 0).any()), f"{name}: a latent twice")
    ranked = (scores.abs() if activation == "abs" else scores).nan_to_num(nan=torch.inf, posinf=torch.inf)
    found = ranked.gather(1, latents)
    near(f"{name}, selection", found.sort(1, descending=True).values, ranked.topk(k).values, limit)
    chosen = scores.gather(1, latents)
    near(f"{name}, values", values, chosen.clamp(min=0) if activation == "relu" else chosen, limit)


def scores_of(x: Tensor, W: Tensor, b: Tensor | None = None, p: Tensor | None = None) -> Tensor:
    centred = x.double() if p is None else x.double() - p.double()
    return centred @ W.double().T + (0 if b is None else b.double())
