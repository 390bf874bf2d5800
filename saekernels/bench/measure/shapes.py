"""What is timed: shapes, and the tensors of a case, from a seeded generator."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

SAMPLED_ROWS = 32


class Shape(NamedTuple):
    """T tokens of width d, F latents (or a vocabulary of F words), k active latents (0 where there are none)."""

    T: int
    d: int
    F: int
    k: int = 0

    def sizes(self) -> dict[str, int]:
        """The sizes under their names."""
        if self.k:
            return self._asdict()
        return {"T": self.T, "d": self.d, "V": self.F}

    def __str__(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.sizes().items())


_BATCHES = (
    Shape(1024, 768, 24576, 32),
    Shape(2048, 1024, 32768, 64),
    Shape(1024, 2304, 65536, 64),
    Shape(512, 4096, 131072, 64),
)
# Each as a batch, and with the few tokens of decoding time.
SAE_SHAPES = tuple(shape._replace(T=T) for shape in _BATCHES for T in (shape.T, 16, 1))
# Widths of large models, where a screen's window is wide and lists of candidates are long.
WIDE_SHAPES = (Shape(256, 3584, 57344, 128), Shape(256, 5120, 40960, 96), Shape(192, 8192, 32768, 64))
TRAIN_SHAPES = (_BATCHES[1],)
LOSS_SHAPES = (Shape(2048, 768, 50304), Shape(512, 2304, 128256), Shape(1024, 160, 4096))
LOSS_TRAIN_SHAPES = (Shape(512, 768, 50257), Shape(1024, 576, 49152))
QUICK_SAE_SHAPES = (Shape(64, 64, 1024, 8), Shape(1, 64, 1024, 8))
QUICK_LOSS_SHAPES = (Shape(64, 64, 1000),)


@dataclass
class Problem:
    """The tensors of one case.

    Attributes:
        tokens: tensors with one row per token, the arguments of every contender's call.
        weights: by name; what contenders prepare from.
    """

    shape: Shape
    dtype: torch.dtype
    tokens: tuple[Tensor, ...]
    weights: dict[str, Tensor] = field(default_factory=dict)

    def first(self, rows: int) -> tuple[Tensor, ...]:
        """The tokens of the first rows."""
        return tuple(tensor[:rows] for tensor in self.tokens)

    def sample(self) -> Tensor:
        """[at most 32] int64: rows whose results are compared with float64, the first and the last among them."""
        return torch.linspace(0, self.shape.T - 1, min(self.shape.T, SAMPLED_ROWS)).round().long()


@lru_cache(maxsize=2)
def matrix(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    """[rows, columns] normal, rows of about unit norm. The last two are kept: making them takes seconds."""
    made = normal((rows, columns), seed)
    return made.mul_(columns**-0.5).to(dtype)


def normal(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    """Independent normal numbers, float32, the same on every machine with the same torch."""
    return torch.empty(shape).normal_(std=scale, generator=torch.Generator().manual_seed(seed))


def encoder_problem(shape: Shape, dtype: torch.dtype) -> Problem:
    """x [T, d]; W_enc [F, d], b_enc [F]; pre-activations are about standard normal."""
    weights = {"W_enc": matrix(shape.F, shape.d, dtype, 1), "b_enc": normal((shape.F,), 2, 0.1).to(dtype)}
    return Problem(shape, dtype, (normal((shape.T, shape.d), 0).to(dtype),), weights)


def sae_problem(shape: Shape, dtype: torch.dtype) -> Problem:
    """The encoder's problem with W_dec [F, d] and b_dec [d], which is subtracted from x as well."""
    problem = encoder_problem(shape, dtype)
    problem.weights["W_dec"] = matrix(shape.F, shape.d, dtype, 3)
    problem.weights["b_dec"] = normal((shape.d,), 4, 0.1).to(dtype)
    return problem


def threshold_for(shape: Shape) -> float:
    """The threshold that about k of F standard normal pre-activations (with their bias) pass."""
    rate = torch.tensor(1 - shape.k / shape.F, dtype=torch.float64)
    return float(torch.special.ndtri(rate)) * (1 + 0.1**2) ** 0.5


def matrix_bytes(shape: Shape, dtype: torch.dtype) -> int:
    """Bytes of one [F, d] matrix."""
    return shape.F * shape.d * dtype.itemsize


def dense_bytes(shape: Shape, dtype: torch.dtype) -> int:
    """Bytes of one [T, F] matrix, which the contenders that we want to beat write."""
    return shape.T * shape.F * dtype.itemsize
