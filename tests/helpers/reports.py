"""Small reports with chosen figures, for the tests of what shows them."""

from __future__ import annotations

import dataclasses
from typing import Any

from saekernels.eval import Report
from saekernels.eval.report.data import CrossEntropy, DeltaCE, DomainFigures, LossRecovered, SiteFigures


def site(name: str, delta: float | None = 0.25, architecture: str = "topk") -> SiteFigures:
    known = delta is not None
    ce = CrossEntropy(3.0, 3.0 + delta if known else None, 9.0, 7.0)
    change = DeltaCE(delta, (0.2, 0.3) if known else None, 0.1, (0.08, 0.12))
    recovered = LossRecovered(0.96, None, (0.95, 0.97), None)
    domains = {
        label: DomainFigures(500, 4, ce, dataclasses.replace(change, nats=share), 0.1, 0.8, recovered)
        for label, share in (("code", 0.1), ("<law> & [red]", 0.4))
    }
    return SiteFigures(
        name, architecture, 64, 8.0, 0.1, 0.0, ce, change, 0.2, (0.1, 0.3), 0.8, None, recovered, domains
    )


def report(**changes: Any) -> Report:
    rows = [site("model.layers.0", 0.05), site("model.layers.1")]
    plain: dict[str, Any] = {
        "model": "a <b> model",
        "tokens": 1000,
        "documents": 8,
        "nbytes": 4000,
        "sites": rows,
        "all_sites": site("all", 0.5, "joint"),
        "context": 24,
        "prefix": [0],
        "mask": "the mask",
        "seed": 0,
        "bootstrap": 100,
        "notes": ["a note with [brackets]"],
        "run": {"device": "cpu"},
        **changes,
    }
    return Report(**plain)
