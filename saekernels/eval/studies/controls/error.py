"""What is in an SAE's error: the part that a linear map of the input predicts, and what remains (arXiv 2410.14670)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.sums.figures import finite
from saekernels.sae.probes import Moments, fit_ridge

_COLUMNS = 8


class ErrorMap:
    """x -> (the predicted error, and the predicted norm and squared norm of the error), fitted by ridge regression.

    folds: moments of x and [error, its norm, its squared norm], d_out + 2 columns, over parts of the documents.
    """

    def __init__(self, folds: Sequence[Moments]) -> None:
        width = len(folds[0].sum_y) - 2
        groups = (slice(0, width), slice(width, width + 1), slice(width + 1, width + 2))
        (self.error, one), (self.norm, two), (self.square, three) = fit_ridge(folds, groups)
        self.ridges = {"error": one, "norm": two, "squared_norm": three}

    def to(self, device: torch.device) -> ErrorMap:
        """The same map there."""
        for probe in (self.error, self.norm, self.square):
            probe.to(device)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """[..., d_out] fp32: the error at x [..., d_in]."""
        return self.error(x.float())


def columns_of(error: Tensor) -> Tensor:
    """[n, d_out + 2] fp64: the error [n, d_out], its norm, its squared norm."""
    rows = error.double()
    square = rows.square().sum(1, keepdim=True)
    return torch.cat([rows, square.sqrt(), square], 1)


class ErrorScores:
    """Sums per document of squared errors, of the error itself, its norm and its squared norm, [documents, 8] fp64."""

    def __init__(self, documents: int) -> None:
        self.sums = np.zeros((documents, _COLUMNS))

    def add(self, found: ErrorMap, x: Tensor, error: Tensor, documents: Tensor) -> None:
        """x [n, d_in], error [n, d_out], documents [n] int64."""
        columns, x = columns_of(error), x.float()
        rows = [torch.ones(len(error), dtype=torch.float64, device=error.device), columns[:, -1]]
        pairs = ((columns[:, :-2], found.error), (columns[:, -2:-1], found.norm), (columns[:, -1:], found.square))
        for values, probe in pairs:
            rows.append((values - probe.mean_out.double()).square().sum(1))
            rows.append((values - probe(x).double()).square().sum(1))
        np.add.at(self.sums, documents.numpy(), torch.stack(rows, 1).cpu().numpy())

    def figures(self, found: ErrorMap, samples: int, seed: int) -> dict[str, Any]:
        """JSON-ready: shares that are predicted, out of sample, with intervals over documents."""
        own = self.sums[self.sums[:, 0] > 0]
        point = _shares(own.sum(0, keepdims=True))[0]
        drawn = None
        if samples and len(own) > 1:
            drawn = _shares(resample_totals(own, samples, (seed, 12)))
        names = ("explained", "power_explained", "norm_explained", "squared_norm_explained")
        made: dict[str, Any] = {}
        for index, name in enumerate(names):
            value = finite(point[index])
            made[name] = value
            made[f"{name}_ci95"] = percentiles(drawn[:, index]) if drawn is not None and value is not None else None
        made["ridge"] = found.ridges
        return made


def _shares(totals: np.ndarray) -> np.ndarray:
    """[m, 4] from totals [m, 8]: 1 minus what is left over what there is about the mean, or, second, at all."""
    _, power, about, left, norm, norm_left, square, square_left = totals.T
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [1 - left / about, 1 - left / power, 1 - norm_left / norm, 1 - square_left / square]
    return np.stack(parts, 1)
