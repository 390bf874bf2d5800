"""Logistic regression with an L2 penalty that is chosen on the rows it is fitted on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3)
RULE = (
    "logistic regression on columns of mean 0 and variance 1 over its own training rows: mean log loss + penalty / 2 * "
    "|weights|^2; the penalty, of 10, 1, 0.1, 0.01 and 0.001, has the least mean log loss over three folds of the "
    "training groups"
)
_STEPS = 100
_HALVINGS = 30
# Newton's decrement squared, about twice what the loss can still fall.
_FINE, _COARSE = 1e-12, 1e-6


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Fits inside give the same bits however many threads there are, and these small products gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Fitted:
    """scores = x @ weights + bias, in the logit of the positive class; weights [m] fp64."""

    weights: Tensor
    bias: float
    penalty: float

    def scores(self, x: Tensor) -> np.ndarray:
        """x [n, m]; returns [n] fp64."""
        return (x.double() @ self.weights + self.bias).cpu().numpy()


def fit_probe(x: Tensor, positive: np.ndarray, folds: np.ndarray) -> Fitted:
    """x [n, m], positive [n] bool, folds [n] int: which fold a row is in. Rows of both classes are needed.

    A fold whose rest lacks a class is left out of the choice; without any, the middle penalty is taken.
    """
    wide = x.double()
    mean = wide.mean(0)
    spread = (wide - mean).square().mean(0).sqrt()
    # A column that does not vary says nothing, whatever rounding leaves of it.
    varies = spread > 1e-9 * mean.abs()
    scale = torch.where(varies, 1 / torch.where(varies, spread, 1.0), 0.0)
    z, back = _turned((wide - mean) * scale)
    y = torch.from_numpy(positive.astype(np.float64))
    penalty = _choose(z, y, torch.from_numpy(folds))
    fitted = _newton(z, y, penalty, z.new_zeros(z.shape[1] + 1), _FINE)
    weights = (fitted[:-1] if back is None else back @ fitted[:-1]) * scale
    return Fitted(weights, float(fitted[-1] - mean @ weights), penalty)


def _turned(z: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rows in coordinates of the space that they span, and the way back [m, n], where columns outnumber rows.

    A penalty on the length of the weights does not see the turn.
    """
    if z.shape[1] <= z.shape[0]:
        return z, None
    basis, rows = torch.linalg.qr(z.T)
    return rows.T.contiguous(), basis


def _choose(z: Tensor, y: Tensor, folds: Tensor) -> float:
    losses = torch.zeros(len(PENALTIES), dtype=torch.float64)
    used = 0
    for fold in folds.unique().tolist():
        held = folds == fold
        own = y[~held]
        if not 0 < own.sum() < len(own):
            continue
        used += 1
        start = z.new_zeros(z.shape[1] + 1)
        for number, penalty in enumerate(PENALTIES):
            start = _newton(z[~held], own, penalty, start, _COARSE)
            losses[number] += _loss(z[held] @ start[:-1] + start[-1], y[held])
    # Of equal ones the first, the strongest.
    return PENALTIES[int(losses.argmin())] if used else PENALTIES[len(PENALTIES) // 2]


def _loss(scores: Tensor, y: Tensor) -> Tensor:
    return (softplus(scores) - y * scores).mean()


def _newton(z: Tensor, y: Tensor, penalty: float, start: Tensor, tolerance: float) -> Tensor:
    """[m + 1]: weights and bias of the least loss, from `start` on."""
    whole = torch.cat([z, z.new_ones(len(z), 1)], 1)
    # The curvature only guides the steps; where they end the gradient decides.
    light = whole.float()
    ridge = torch.full_like(start, penalty)
    ridge[-1] = 0.0
    at = start
    value = _loss(whole @ at, y) + (ridge * at * at).sum() / 2
    for _ in range(_STEPS):
        p = torch.sigmoid(whole @ at)
        gradient = whole.T @ (p - y) / len(z) + ridge * at
        curvature = (light.T @ (light * (p * (1 - p)).float()[:, None])).double() / len(z)
        # Rounding must not leave a direction without curvature.
        curvature.diagonal().add_(ridge + 1e-9 + 1e-6 * curvature.diagonal().amax())
        step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(curvature))[:, 0]
        decrement = float(gradient @ step)
        if decrement < tolerance:
            break
        for halving in range(_HALVINGS):
            new = at - step * 0.5**halving
            found = _loss(whole @ new, y) + (ridge * new * new).sum() / 2
            if found <= value - 1e-4 * 0.5**halving * decrement:
                break
        else:
            break
        at, value = new, found
    return at
