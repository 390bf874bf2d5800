"""Activations and input normalisations of SAEs, as data: what a checkpoint's config says, no behaviour of a module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saekernels.ops import _check


def _check_k(activation: TopK | AbsTopK | GroupMax) -> None:
    k = _check.integer(activation.k)
    if k is None or k < 1:
        raise ValueError(f"k: got {activation.k!r}, need an int of at least 1")
    object.__setattr__(activation, "k", k)  # an int of numpy's would have another repr, by which runs are told apart


def _check_real(name: str, value: float, least: float, above: bool) -> None:
    """ValueError unless `value` is a finite number that is at least, or above, `least`."""
    try:
        finite = not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        finite = False
    if not finite or value < least or (above and value == least):
        raise ValueError(f"{name}: got {value!r}, need a finite number {'above' if above else 'of at least'} {least}")


@dataclass(frozen=True)
class ReLU:
    """Every latent with a positive pre-activation."""

    name: ClassVar[str] = "standard"


@dataclass(frozen=True, repr=False)
class TopK:
    """The k largest pre-activations of a row, then ReLU (Gao et al. 2024, arXiv 2406.04093).

    relu: False keeps them as they are, so that every token has k codes, of which some may be negative (circuit-tracer,
    Qwen Scope, OpenAI's `postact_fn` Identity). The same unless fewer than k pre-activations are positive.
    """

    k: int
    relu: bool = True
    name: ClassVar[str] = "topk"

    def __post_init__(self) -> None:
        _check_k(self)
        if not isinstance(self.relu, bool):
            raise ValueError(f"relu: got {self.relu!r:.40}, need True or False")

    def __repr__(self) -> str:
        # Without the default: runs are told apart by this, and folders of runs from before `relu` go on.
        return f"TopK(k={self.k})" if self.relu else f"TopK(k={self.k}, relu=False)"


@dataclass(frozen=True)
class AbsTopK:
    """The k pre-activations largest in magnitude, signs kept."""

    k: int
    name: ClassVar[str] = "abstopk"

    def __post_init__(self) -> None:
        _check_k(self)


@dataclass(frozen=True)
class GroupMax:
    """Latents in k contiguous groups of equal size, the largest of each group, then ReLU."""

    k: int
    name: ClassVar[str] = "groupmax"

    def __post_init__(self) -> None:
        _check_k(self)


@dataclass(frozen=True)
class JumpReLU:
    """relu(pre) * (pre > threshold), one threshold per latent (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    name: ClassVar[str] = "jumprelu"


@dataclass(frozen=True)
class BatchTopK:
    """At inference relu(pre) * (pre > threshold), one threshold for all (Bussmann et al. 2024, arXiv 2412.06410).

    k, the mean number of active latents that training aimed at, is kept as a record.
    """

    k: float | None = None
    name: ClassVar[str] = "batchtopk"

    def __post_init__(self) -> None:
        if self.k is not None:
            _check_real("k", self.k, 0, above=True)


@dataclass(frozen=True)
class Gated:
    """relu(exp(r_mag) * s + b_mag) where s + b_gate > 0, s = x @ W_enc.T (Rajamanoharan et al. 2024, 2404.16014)."""

    name: ClassVar[str] = "gated"


Activation = ReLU | TopK | AbsTopK | GroupMax | JumpReLU | BatchTopK | Gated


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / (std + eps) over the features of a token, std unbiased; undone on the output (SAELens, OpenAI)."""

    eps: float = 1e-5
    name: ClassVar[str] = "layer_norm"

    def __post_init__(self) -> None:
        _check_real("eps", self.eps, 0, above=False)

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [..., d] to (normalised x, scale [..., 1], shift [..., 1]) with x = normalised * scale + shift."""
        shift = x.mean(dim=-1, keepdim=True)
        centred = x - shift
        std = centred.std(dim=-1, keepdim=True)
        # The eps guards the division alone: the peers multiply back by std, not by std + eps.
        return centred / (std + self.eps), std, shift


@dataclass(frozen=True)
class ConstantNorm:
    """x * sqrt(d) / |x| for each token; undone on the output."""

    name: ClassVar[str] = "constant_norm"

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [..., d] to (rescaled x, scale [..., 1], None) with x = rescaled * scale."""
        scale = x.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
        return x / scale, scale, None


@dataclass(frozen=True)
class Scale:
    """x * factor for every token; the output is divided by it. Usually sqrt(d) / mean |x| of the training set."""

    factor: float
    name: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        _check_real("factor", self.factor, 0, above=True)

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [..., d] to (x * factor, 1 / factor [], None)."""
        return x * self.factor, torch.tensor(1.0 / self.factor, dtype=x.dtype, device=x.device), None


Normalization = LayerNorm | ConstantNorm | Scale
