"""Logistic regression by scipy: what probes are compared with."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize


def by_scipy(z: np.ndarray, labels: np.ndarray, penalty: float) -> np.ndarray:
    """[m + 1]: weights and bias."""

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        scores = z @ at[:-1] + at[-1]
        p = 1 / (1 + np.exp(-scores))
        value = (np.logaddexp(0, scores) - labels * scores).mean() + penalty / 2 * (at[:-1] ** 2).sum()
        return value, np.append(z.T @ (p - labels) / len(z) + penalty * at[:-1], (p - labels).mean())

    options = {"maxiter": 10_000, "ftol": 1e-16, "gtol": 1e-10}
    return minimize(loss, np.zeros(z.shape[1] + 1), jac=True, method="L-BFGS-B", options=options).x
