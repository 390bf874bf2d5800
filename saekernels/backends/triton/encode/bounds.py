"""bounds: how far a screened score can be from the score asked for, as vectors for the screen's epilogue.

float32 on tensor cores (tf32): a factor loses at most 2^-10 of itself (its fraction has 10 bits, rounded or cut
off), so with |.| Euclidean norms and Cauchy and Schwarz a product of rows loses at most (2 * 2^-10 + 2^-20) |x||w|.
Sums: tensor cores align the terms of a step and cut them off (Fasi, Higham, Mikaitis, Pranesh 2021, Numerical
behavior of NVIDIA tensor cores), at less than 2^-22 of the largest partial sum per term, so d * 2^-22 |x||w|. The
float32 score's own rounding is less than that again.

Quantised operands (precision="screened"): with |dx| and |dw| the norms of what rounding took, errors of independent
signs add up to a standard deviation near (|dx||w| + |x||dw|) / sqrt(d); MARGIN of those are kept. That is
statistics, not proof.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.backends.triton.encode.operands import Operands, Vectors

TF32_STEP = 2.0**-10
SUM_STEP = 2.0**-22
# Standard deviations; docs/evidence/measured.md has the miss rates (benchmarks/miss_rate.py).
MARGIN = 3.0
# Of everything computed here, and of sums that the screen's epilogue rounds.
INFLATION = 1 + 2.0**-10
# What a product that underflows may lose, and more.
UNDERFLOW = 2.0**-120


def tf32(x: Tensor, W: Tensor, bias: Tensor | None, latent_norm: Tensor) -> Operands:
    """Operands of a tf32 screen of x [T, d] and W [F, d], both float32, with the norms of W's rows [F]: rigorous."""
    depth = x.shape[1]
    loss = (2 * TF32_STEP + TF32_STEP**2 + 2 * depth * SUM_STEP) * INFLATION
    row_norm = norms(x)
    vectors = Vectors(
        bias,
        row_norm=row_norm,
        row_error=row_norm * loss,
        latent_norm=latent_norm,
        latent_error=torch.zeros_like(latent_norm),
        latent_slack=slack(bias, latent_norm, depth),
    )
    return Operands(x, W, vectors, float32_product="tf32")


def norms(matrix: Tensor) -> Tensor:
    """Euclidean norms of the rows of a float32 matrix, from above: [rows]."""
    return torch.linalg.vector_norm(matrix, dim=1) * INFLATION


def slack(bias: Tensor | None, like: Tensor, depth: int) -> Tensor:
    """What adding the bias [F] may lose, and terms that underflow."""
    least = depth * UNDERFLOW
    return torch.full_like(like, least) if bias is None else bias.abs() * 2.0**-20 + least


def scaled(of: Operands, factor: Tensor) -> Operands:
    """Operands whose scores are multiplied by factor [F]. INFLATION has room for that rounding, too."""
    vectors, up = of.vectors._replace(factor=factor), factor * INFLATION
    if vectors.latent_norm is not None and vectors.latent_error is not None and vectors.latent_slack is not None:
        vectors = vectors._replace(
            latent_norm=vectors.latent_norm * up,
            latent_error=vectors.latent_error * up,
            latent_slack=vectors.latent_slack * up + of.x.shape[1] * UNDERFLOW,
        )
    return of._replace(vectors=vectors)


def tf32_growth(depth: int) -> float:
    """How many times more candidates the window of a tf32 screen lets in, for scores that are normal far from 0."""
    shift = 2 * (2 * TF32_STEP + 2 * depth * SUM_STEP) * depth**0.5
    return float(min(8.0, 2.718 ** (3.5 * shift)))
