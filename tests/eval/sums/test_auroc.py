"""AUROC against all pairs, scipy's Mann-Whitney U and a plain bootstrap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from saekernels.eval.sums import auroc as module
from saekernels.eval.sums.auroc import auroc, resampled_rows

ROWS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def columns(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([float(score) for score, _ in rows]), np.array([label for _, label in rows])


def by_pairs(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    won = total = 0.0
    for i, j in itertools.product(np.flatnonzero(positive), np.flatnonzero(~positive)):
        weight = weights[i] * weights[j]
        won += weight * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
        total += weight
    return won / total


@given(ROWS, st.integers(0, 2**32 - 1))
def test_all_pairs_with_ties_and_weights(rows: list[tuple[int, bool]], seed: int) -> None:
    scores, positive = columns(rows)
    weights = np.random.default_rng(seed).integers(1, 4, size=(2, len(rows))).astype(float)
    found = auroc(scores, positive, weights)
    assert found == pytest.approx([by_pairs(scores, positive, row) for row in weights], abs=1e-12)


@given(ROWS)
def test_the_mann_whitney_u_over_the_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, positive = columns(rows)
    u = mannwhitneyu(scores[positive], scores[~positive]).statistic
    pairs = positive.sum() * (~positive).sum()
    assert auroc(scores, positive)[0] == pytest.approx(u / pairs, abs=1e-12)


@given(ROWS)
def test_monotone_maps_change_nothing_and_a_turn_gives_the_rest(rows: list[tuple[int, bool]]) -> None:
    scores, positive = columns(rows)
    found = auroc(scores, positive)[0]
    for mapped in (scores**3 + scores, np.exp(scores), 7 * scores - 2):
        assert auroc(mapped, positive)[0] == found
    assert auroc(-scores, positive)[0] == pytest.approx(1 - found, abs=1e-12)
    assert auroc(scores, ~positive)[0] == pytest.approx(1 - found, abs=1e-12)


def test_what_has_no_auroc() -> None:
    some = np.array([0.0, 1.0, 2.0])
    assert np.isnan(auroc(some, np.ones(3, dtype=bool))[0])
    assert np.isnan(auroc(np.array([0.0, np.nan, 1.0]), np.array([True, False, True]))[0])
    assert np.isnan(auroc(np.zeros(0), np.zeros(0, dtype=bool))[0])
    one_drawn = np.array([[1.0, 0.0, 2.0], [1.0, 1.0, 0.0]])
    found = auroc(some, np.array([True, False, True]), one_drawn)
    assert np.isnan(found[0]), "no negative row is drawn"
    assert found[1] == 0.0
    assert auroc(np.array([-np.inf, np.inf]), np.array([False, True]))[0] == 1.0


def test_replicates_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    strata = ("a", "b", "a", "b", "b")
    found = np.concatenate(list(resampled_rows(groups, strata, 40, (3, 1))))
    want = np.zeros((40, 8))
    for number, own in enumerate(([0, 2], [1, 3, 4])):
        draws = np.random.default_rng((3, 1, 0, number)).integers(0, len(own), size=(40, len(own)))
        for replicate, row in enumerate(draws):
            for one in row:
                want[replicate] += groups == own[one]
    np.testing.assert_array_equal(found, want)
    assert {tuple(row[[2, 6, 7]]) for row in found} > {(1.0, 1.0, 1.0)}, "groups are drawn, not kept"
    in_a = found[:, 0] + found[:, 3]
    assert set(in_a) == {2.0}, "each stratum keeps its number of groups"
    monkeypatch.setattr(module, "resample_counts", None)
    assert list(resampled_rows(groups, strata, 0, 0)) == []
