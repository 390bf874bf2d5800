"""One checkpoint's point on every curve: of a report and the studies beside it, the figures that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saekernels.eval.report.data import ReportData, SiteFigures

# The ablation that a splice is measured against: the best constant.
BASELINE = "mean"
_SHARING = ("general", "ceiling", "chance", "distinct", "effective", "carriers")


def losses(report: ReportData) -> dict[str, Any]:
    """Clean CE, and target -> what splicing it costs; JSON-ready. All sites together are "all" where there are two."""
    joint = [report.all_sites] if len(report.sites) > 1 else []
    return {
        "clean_ce": report.all_sites.ce.clean,
        "targets": {row.site: _target(row) for row in [*report.sites, *joint]},
    }


def _target(row: SiteFigures) -> dict[str, Any]:
    return {
        "spliced_ce": row.ce.spliced,
        "delta_ce": {"value": row.delta_ce.nats, "ci95": row.delta_ce.ci95},
        "recovered": {"value": row.loss_recovered.mean, "ci95": row.loss_recovered.mean_ci95},
        "kl": {"value": row.kl, "ci95": row.kl_ci95},
        "ablated_delta_ce": row.baselines[BASELINE].delta_ce if BASELINE in row.baselines else None,
        "fvu": row.fvu,
        "l0": row.l0,
        "dead_fraction": row.dead_fraction,
    }


def worth(section: Mapping[str, Any]) -> dict[str, Any]:
    """Of a report's part "effective_compute": target, and "clean" -> share of the largest member's compute."""
    return {
        key: {"value": one["share"], "ci95": one["share_ci95"], "outside": one["outside"]}
        for key, one in section["targets"].items()
    }


def reuse(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of what `measure_reuse` found: entry -> the sharing numbers over all domains, and the approximation's error."""
    return {
        row["site"]: {
            "approximation_error": row["removal"]["effect"]["error"],
            **{kind: {name: row[kind][name] for name in _SHARING} for kind in ("effect", "mass")},
        }
        for row in found["sites"]
    }


def breadth(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of what `measure_breadth` found: everything but the matrix of domains."""
    return {name: found[name] for name in ("site", "ranks", "levels")}
