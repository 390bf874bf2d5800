"""Intervals by leaving out groups: by formula for a mean, by simulation for a ratio, and where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from saekernels.eval.sums.jackknife import GROUPS, estimate, leave_one_out


def test_the_interval_of_a_mean_is_students() -> None:
    x = np.random.default_rng(0).normal(3, 2, GROUPS)
    sums = torch.tensor(np.column_stack([x, np.ones(GROUPS)]))
    found = estimate([float(total[0] / total[1]) for total in leave_one_out(sums)])
    error = x.std(ddof=1) / math.sqrt(GROUPS)
    assert found.value == pytest.approx(x.mean())
    assert found.ci95 == pytest.approx((x.mean() - 2.131 * error, x.mean() + 2.131 * error))
    two = estimate([1.0, 0.0, 2.0])
    assert two.ci95 == pytest.approx((1 - 12.706, 1 + 12.706))
    assert estimate([5.0, 0.0, 2.0]).ci95 == pytest.approx((5 - 12.706, 5 + 12.706)), "squares are of their own mean"


def test_totals_without_each_group() -> None:
    sums = torch.arange(24, dtype=torch.float64).view(4, 2, 3)
    found = leave_one_out(sums)
    assert len(found) == 5
    assert torch.equal(found[0], sums.sum(0))
    for number in range(4):
        torch.testing.assert_close(found[1 + number], sums[[i for i in range(4) if i != number]].sum(0))


def test_ratios_of_groups_are_covered() -> None:
    """Groups of unequal documents: the true ratio 0.5 lies within about 95 % of the intervals."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        sizes = rng.gamma(4, 25, (GROUPS, 3))
        sums = torch.tensor(np.stack([(sizes * rng.normal(0.5, 0.3, sizes.shape)).sum(1), sizes.sum(1)], 1))
        ci95 = estimate([float(total[0] / total[1]) for total in leave_one_out(sums)]).ci95
        assert ci95 is not None
        hits += ci95[0] <= 0.5 <= ci95[1]
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(
    ("values", "value"), [([1.0], 1.0), ([1.0, 2.0], 1.0), ([math.nan, 1.0, 2.0], None), ([1.0, math.nan, 2.0], 1.0)]
)
def test_without_groups_or_figures_there_is_none(values: list[float], value: float | None) -> None:
    found = estimate(values)
    assert (found.value, found.ci95) == (value, None)
