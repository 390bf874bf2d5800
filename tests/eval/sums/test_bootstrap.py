"""The bootstrap over documents: against a plain loop, against theory, and its pairing."""

from __future__ import annotations

import numpy as np
import pytest

from saekernels.eval.sums import bootstrap
from saekernels.eval.sums.figures import COLUMNS, FIGURES, estimates, figures


def sums(seed: int, documents: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(documents, 3))


def test_totals_equal_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    table = sums(0, 13)
    got = bootstrap.resample_totals(table, 50, 4)
    rng = np.random.default_rng(4)
    want = np.stack([table[rng.integers(0, 13, size=13)].sum(axis=0) for _ in range(50)])
    np.testing.assert_allclose(got, want, rtol=1e-12)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 40)
    np.testing.assert_array_equal(bootstrap.resample_totals(table, 50, 4), got)


def test_interval_of_a_mean_has_the_width_that_theory_gives() -> None:
    documents = 400
    losses = np.random.default_rng(1).normal(2.0, 0.5, size=documents)
    tokens = np.ones(documents)
    table = np.zeros((documents, len(COLUMNS)))
    table[:, 1] = losses
    row = estimates(tokens, tokens, [table], 4000, (0,))[0]["spliced"]
    low, high = row.ci95
    half = 1.96 * losses.std() / documents**0.5
    assert abs((high - low) / (2 * half) - 1) < 0.06
    assert abs((high + low) / 2 - losses.mean()) < 0.1 * half


def test_differences_are_paired_across_columns_and_targets() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(50, 200, size=40).astype(float)
    clean = tokens * rng.normal(3.0, 1.0, size=40)
    table = np.zeros((40, len(COLUMNS)))
    table[:, 0], table[:, 1] = clean, clean + 0.25 * tokens
    one, two = estimates(tokens, tokens, [table, table.copy()], 300, (0,))
    assert one == two
    low, high = one["delta_nats"].ci95
    assert abs(low - 0.25) < 1e-12, "a constant difference has no spread"
    assert abs(high - 0.25) < 1e-12, "a constant difference has no spread"
    assert one["clean"].ci95[1] - one["clean"].ci95[0] > 0.1


def test_seed_decides() -> None:
    table = np.abs(sums(3, 30))
    same = [bootstrap.resample_totals(table, 20, seed) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


def test_one_document_or_no_samples_give_no_interval() -> None:
    table = np.ones((1, len(COLUMNS)))
    assert estimates(np.ones(1), np.ones(1), [table], 100, (0,))[0]["kl"].ci95 is None
    two = np.ones((2, len(COLUMNS)))
    assert estimates(np.ones(2), np.ones(2), [two], 0, (0,))[0]["kl"].ci95 is None
    assert estimates(np.ones(2), np.ones(2), [two], 100, (0,))[0]["kl"].ci95 == (1.0, 1.0)


def test_what_is_not_finite_or_undefined_is_none_and_stays_in_its_column() -> None:
    table = np.full((5, len(COLUMNS)), 2.0)
    table[1, 2] = np.inf
    table[:, 3] = 1.0
    row = estimates(np.ones(5), np.zeros(5), [table], 50, (0,))[0]
    assert row["zero"].value is None
    assert row["zero"].ci95 is None
    assert row["recovered_zero"].value is None, "needs the zero-ablated loss"
    assert row["recovered_mean"].value is None, "the ablation lowers the loss"
    assert row["delta_bits_per_byte"].value is None, "no bytes"
    assert row["spliced"].value == 2.0
    assert row["spliced"].ci95 == (2.0, 2.0)


def test_figures_are_their_formulas() -> None:
    totals = np.array([[30.0, 33.0, 60.0, 45.0, 32.0, 36.0, 5.0, 8.0]])
    got = dict(zip(FIGURES, figures(np.array([10.0]), np.array([40.0]), totals)[0], strict=True))
    want = {
        "clean": 3.0, "spliced": 3.3, "zero": 6.0, "mean": 4.5, "kl": 0.5, "agree": 0.8, "delta_nats": 0.3,
        "delta_bits_per_byte": 3.0 / np.log(2) / 40, "recovered_zero": 2.7 / 3.0, "recovered_mean": 1.2 / 1.5,
        "random": 3.2, "pca": 3.6, "delta_zero": 3.0, "delta_mean": 1.5, "delta_random": 0.2, "delta_pca": 0.6,
        "over_random": 0.1, "over_pca": -0.3,
    }  # fmt: skip
    assert got == pytest.approx(want)
