"""Affine probes: PCA and reduced-rank regression against a decomposition of the rows themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekernels.sae.probes import AffineProbe, Moments, fit_probes


def rows(n: int, d: int, seed: int = 0, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, rank or d, generator=generator, dtype=torch.float64)
    return mixed @ torch.randn(rank or d, d, generator=generator, dtype=torch.float64) + 3.0


def moments(x: Tensor, y: Tensor | None = None) -> Moments:
    made = Moments(x.shape[1], None if y is None else y.shape[1])
    made.add(x, y)
    return made


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 60), d=st.integers(1, 12), rank=st.integers(0, 14), seed=st.integers(0, 999))
def test_pca_leaves_the_smallest_singular_values(n: int, d: int, rank: int, seed: int) -> None:
    x = rows(n, d, seed)
    probe = fit_probes(moments(x), [rank])[rank]
    error = (probe(x.float()).double() - x).square().sum()
    left = torch.linalg.svdvals(x - x.mean(0))[rank:].square().sum()
    torch.testing.assert_close(error, left, rtol=1e-4, atol=1e-5 * float(x.square().sum()))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(30, 80), d=st.integers(1, 8), out=st.integers(1, 8), rank=st.integers(0, 8), seed=st.integers(0, 9)
)
def test_reduced_rank_regression_is_least_squares_cut_by_rank(n: int, d: int, out: int, rank: int, seed: int) -> None:
    x, noise = rows(n, d, seed), rows(n, out, seed + 100)
    y = x @ rows(d, out, seed + 200) + noise
    found = fit_probes(moments(x, y), [rank])[rank](x.float()).double()
    centred = x - x.mean(0)
    fitted = centred @ torch.linalg.lstsq(centred, y - y.mean(0)).solution
    left, sizes, right = torch.linalg.svd(fitted, full_matrices=False)
    best = (left[:, :rank] * sizes[:rank]) @ right[:rank] + y.mean(0)
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-4 * float(y.abs().max()))


def test_a_direction_that_x_lacks_explains_nothing() -> None:
    x = rows(50, 6, rank=2)
    y = x[:, :3] * 2.0
    probe = fit_probes(moments(x, y), [2])[2]
    torch.testing.assert_close(probe(x.float()).double(), y, rtol=1e-4, atol=1e-4)
    assert bool(torch.isfinite(probe.W_enc).all())


def test_moments_add_up_in_any_portions() -> None:
    x, y = rows(9000, 5), rows(9000, 3, 1)
    whole, parts = moments(x, y), Moments(5, 3)
    for start, stop in ((0, 1), (1, 1), (1, 5000), (5000, 9000)):
        parts = parts + moments(x[start:stop], y[start:stop])
    assert parts.count == 9000
    for name in ("sum_x", "sum_y", "xx", "xy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-6)
    torch.testing.assert_close(whole.mean_out, y.mean(0))
    again = Moments(5, 3)
    again.load(whole.state())
    assert torch.equal(again.xx, whole.xx)
    assert again.count == 9000


def test_one_row_gives_the_mean_and_extra_ranks_are_cut() -> None:
    x = rows(1, 4)
    made = fit_probes(moments(x), [0, 3, 99])
    assert made[99].rank == 4
    for probe in made.values():
        torch.testing.assert_close(probe(x.float()), x.float(), rtol=1e-5, atol=1e-5)
    out, codes = made[3].forward_with_codes(x.float())
    assert codes is None
    assert torch.equal(out, made[3](x.float()))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="got 0 rows"):
        fit_probes(Moments(3), [1])
    means = Moments(3, second=False)
    means.add(torch.ones(2, 3))
    with pytest.raises(ValueError, match="second moments, got 2 rows, xx 0"):
        fit_probes(means, [1])
    with pytest.raises(ValueError, match="ranks: need at least 0, got -1"):
        fit_probes(moments(rows(5, 3)), [2, -1])
    with pytest.raises(ValueError, match=r"need \[r, d_in\]"):
        AffineProbe(torch.ones(2, 3), torch.ones(1, 3), torch.ones(3), torch.ones(3))
