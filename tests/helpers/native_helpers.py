"""What the tests of the native backend share: the levels of this machine, awkward inputs, and what was counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from saekernels.backends import cpu
from saekernels.backends.cpu import native

needs_native = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))
LEVELS = native.LOADED.supported_simd_levels().split(",") if native.LOADED is not None else []
SCREENS = ("fp32", "bf16", "int16", "int8")


@pytest.fixture(autouse=True)
def best_level_again() -> Iterator[None]:
    """Whatever level a test forces, the best one is back afterwards; for the files that import it."""
    yield
    if cpu.available() is None:
        cpu.set_simd_level("auto")


@pytest.fixture
def any_screen_again() -> Iterator[None]:
    """Whatever screen a test forces, the shape chooses again afterwards."""
    yield
    cpu.set_screening("auto")


def counted(call: Callable[[], object]) -> dict[str, int]:
    """What `call` added to each counter."""
    before = cpu.stats()
    call()
    return {name: value - before[name] for name, value in cpu.stats().items()}


def data(T: int = 40, d: int = 96, F: int = 3000) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(T, d), torch.randn(F, d) / d**0.5, torch.randn(F) * 0.1


def one_by_one(x: Tensor, W: Tensor, b: Tensor | None, k: int, activation: str = "none") -> tuple[Tensor, Tensor]:
    """Single rows are never screened: every score is computed exactly."""
    rows = [cpu.encode_topk(x[t : t + 1], W, b, None, k, activation) for t in range(x.shape[0])]
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def awkward(draw: str, T: int, d: int, F: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x, W, b) with what makes screens fail: one cause by name."""
    x, W, b = data(T, d, F)
    if draw == "anisotropic":
        x = x / torch.arange(1, d + 1) + 3 * (torch.arange(d) == 5)
    if draw == "outlier dimension":
        x[:, 7] *= 60
    if draw == "heavy-tailed latents":
        W = torch.distributions.StudentT(3.0).sample((F, d)) / d**0.5
    if draw == "attention sinks":
        x[::5] *= 170
    if draw == "latents by falling norm":
        W = W * torch.linspace(0, -4, F).exp()[:, None]
    if draw == "ties":
        W[F // 2 :] = W[: F - F // 2]
        x = x.round()
    if draw == "zeros":
        x[::3], W[::7], b = 0, 0, torch.zeros(F)
    if draw == "not finite":
        x[1, 3], x[4, 0], x[6, 6] = float("nan"), float("inf"), 2e38
        W[5, 5], W[9, 0] = float("nan"), -float("inf")
    if draw == "subnormal":
        x[::2] *= 1e-40
        W[::3] *= 1e-39
    return x, W, b


AWKWARD = (
    "gaussian", "anisotropic", "outlier dimension", "heavy-tailed latents", "attention sinks",
    "latents by falling norm", "ties", "zeros", "not finite", "subnormal",
)  # fmt: skip
