"""Ridge regression from streamed moments, its ridge chosen across folds: against the same by hand on the rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saekernels.sae.probes import Moments, fit_probes, fit_ridge

RIDGES = [10.0**power for power in range(1, -9, -1)]


def rows(n: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """x [n, 7] of unlike variances and y [n, 4], affine in x and noise; fp64."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(7, 4, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    x = torch.randn(n, 7, generator=generator, dtype=torch.float64) * torch.logspace(0.5, -1, 7) + 3
    return x, x @ weights - 1 + noise * torch.randn(n, 4, generator=generator, dtype=torch.float64)


def moments(x: Tensor, y: Tensor) -> Moments:
    made = Moments(x.shape[1], y.shape[1])
    made.add(x, y)
    return made


def by_hand(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """(weights [7, d_out], bias [d_out]): least squares of centred rows with the ridge times their mean variance."""
    cx, cy = x - x.mean(0), y - y.mean(0)
    gram = cx.T @ cx / len(x)
    weights = torch.linalg.solve(gram + ridge * gram.trace() / len(gram) * torch.eye(len(gram)), cx.T @ cy / len(x))
    return weights, y.mean(0) - x.mean(0) @ weights


@pytest.mark.parametrize(("n", "noise"), [(6, 3.0), (12, 3.0), (40, 1.0), (400, 0.01)])
def test_the_ridge_is_the_best_on_the_folds_held_out(n: int, noise: float) -> None:
    folds = [rows(n, 1, noise), rows(n + 5, 2, noise)]
    groups = (slice(0, 3), slice(3, 4))
    found = fit_ridge([moments(*fold) for fold in folds], groups)
    for own, (probe, ridge) in zip(groups, found, strict=True):
        errors = []
        for one in RIDGES:
            total = 0.0
            for (x, y), (held_x, held_y) in (folds, folds[::-1]):
                weights, bias = by_hand(x, y[:, own], one)
                total += float((held_y[:, own] - held_x @ weights - bias).square().sum())
            errors.append(total)
        assert ridge == RIDGES[errors.index(min(errors))]
        x, y = (torch.cat(parts) for parts in zip(*folds, strict=True))
        weights, bias = by_hand(x, y[:, own], ridge)
        torch.testing.assert_close(probe(x.float()).double(), x @ weights + bias, rtol=1e-4, atol=1e-4)
    if noise == 3.0:
        assert found[0][1] > RIDGES[-1]


def test_one_fold_alone_has_a_ridge_of_one() -> None:
    x, y = rows(50, 3)
    empty = Moments(7, 4)
    for folds in ([moments(x, y)], [empty, moments(x, y)]):
        ((probe, ridge),) = fit_ridge(folds, [slice(0, 4)])
        assert ridge == 1.0
        weights, bias = by_hand(x, y, 1.0)
        torch.testing.assert_close(probe(x.float()).double(), x @ weights + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("folds", [[], [Moments(7, 4)], [Moments(7)], [Moments(7, 4, second=False)]])
def test_a_map_needs_rows_of_both(folds: list[Moments]) -> None:
    if folds and not (folds[0].paired and not folds[0].count and len(folds[0].xx)):
        folds[0].add(*rows(3, 0)[: 1 + folds[0].paired])
    with pytest.raises(ValueError, match=r"^folds: need rows of x and y, and second moments, got \d rows$"):
        fit_ridge(folds, [slice(0, 4)])


def test_a_part_of_moments_is_the_moments_of_the_part() -> None:
    x, y = rows(60, 4)
    whole = moments(x, y)
    part, alone = whole.part(slice(1, 3)), whole.part(None)
    for rank, probe in fit_probes(part, [1, 2]).items():
        torch.testing.assert_close(probe(x.float()), fit_probes(moments(x, y[:, 1:3]), [rank])[rank](x.float()))
    own = Moments(7)
    own.add(x)
    torch.testing.assert_close(fit_probes(alone, [3])[3](x.float()), fit_probes(own, [3])[3](x.float()))
