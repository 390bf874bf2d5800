"""Logistic probes against scipy's minimiser, and the choice of their penalty against fits one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from logistic_reference import by_scipy
from saekernels.eval.studies.probe.logistic import PENALTIES, fit_probe, one_thread


def rows(n: int, m: int, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of unlike sizes and means, labels that hang on some of them, folds."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, m)) @ rng.normal(size=(m, m)) * np.logspace(0, -2, m) + rng.normal(size=m)
    labels = (x - x.mean(0)) @ (rng.normal(size=m) / x.std(0)) + noise * rng.normal(size=n) * m**0.5 > 0
    return x, labels, np.arange(n) % 3


def standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1.0)


def chosen(z: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    losses = []
    for penalty in PENALTIES:
        fold_losses = []
        for fold in np.unique(folds):
            at = by_scipy(z[folds != fold], labels[folds != fold], penalty)
            scores = z[folds == fold] @ at[:-1] + at[-1]
            fold_losses.append((np.logaddexp(0, scores) - labels[folds == fold] * scores).mean())
        losses.append(np.mean(fold_losses))
    return PENALTIES[int(np.argmin(losses))]


@pytest.mark.parametrize(("n", "m", "noise"), [(90, 6, 0.0), (90, 6, 1.0), (90, 6, 30.0), (40, 60, 0.5)])
def test_scores_and_penalty_are_scipys(n: int, m: int, noise: float) -> None:
    x, labels, folds = rows(n, m, seed=m, noise=noise)
    found = fit_probe(torch.from_numpy(x), labels, folds)
    z = standardised(x)
    assert found.penalty == chosen(z, labels, folds)
    at = by_scipy(z, labels, found.penalty)
    np.testing.assert_allclose(found.scores(torch.from_numpy(x)), z @ at[:-1] + at[-1], atol=1e-5)


def test_noise_asks_for_a_stronger_penalty() -> None:
    found = [fit_probe(torch.from_numpy(x), labels, folds).penalty
             for x, labels, folds in (rows(90, 6, 6, 0.0), rows(90, 6, 6, 1.0), rows(90, 6, 6, 30.0))]  # fmt: skip
    assert found[0] < found[1] < found[2]


def test_units_of_columns_change_nothing_and_constant_ones_say_nothing() -> None:
    x, labels, folds = rows(60, 5)
    plain = fit_probe(torch.from_numpy(x), labels, folds)
    other = np.concatenate([x * [1e-3, 1e4, 1, -2, 5] + 3, np.full((60, 1), 0.1)], 1)
    found = fit_probe(torch.from_numpy(other), labels, folds)
    assert found.weights[-1] == 0.0
    assert found.penalty == plain.penalty
    np.testing.assert_allclose(found.scores(torch.from_numpy(other)), plain.scores(torch.from_numpy(x)), atol=1e-5)
    nothing = fit_probe(torch.zeros(60, 0), labels, folds)
    share = labels.mean()
    np.testing.assert_allclose(nothing.scores(torch.zeros(2, 0)), np.log(share / (1 - share)), atol=1e-6)


def test_separable_rows_and_folds_without_a_class() -> None:
    x = torch.cat([-torch.ones(20, 2), torch.ones(20, 2)]).double()
    labels = np.arange(40) >= 20
    found = fit_probe(x, labels, np.arange(40) % 3)
    assert found.penalty == PENALTIES[-1]
    assert np.isfinite(found.scores(x)).all()
    # All positive rows are in fold 0, so its rest has no class to tell from another: it is left out of the choice.
    apart = np.where(labels, 0, 1 + np.arange(40) % 2)
    assert fit_probe(x, labels, apart).penalty in PENALTIES
    assert fit_probe(x, labels, np.where(labels, 0, 1)).penalty == PENALTIES[2]


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        raise KeyError(torch.get_num_threads())
    assert torch.get_num_threads() == before
    with one_thread():
        assert torch.get_num_threads() == 1
