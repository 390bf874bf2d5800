"""Where in the text a splice costs what: by domain, by place in the window, by how frequent the next token is."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from results.cells import cost, nats, plain, table

AXES = {"position": "tokens before the predicted one", "frequency": "share of the predicted token in the text"}


def domains(report: dict[str, Any]) -> Iterator[str]:
    """One row per domain."""
    rows = []
    for name, part in report["all_sites"]["domains"].items():
        alone = (row["domains"][name] for row in report["sites"])
        rows.append([name, f"{part['tokens']:,}", str(part["documents"]), *_costs(part, alone)])
    heads = ["domain", "tokens", "documents", "clean CE", "all together, ΔCE [95 %]", "one layer alone, median"]
    yield from table(heads, rows)


def strata(report: dict[str, Any]) -> Iterator[str]:
    """One table per other axis that the report has."""
    for number, (axis, parts) in enumerate(report["all_sites"]["strata"].items()):
        if number:
            yield ""
        rows = []
        for name, part in parts.items():
            alone = (row["strata"][axis][name] for row in report["sites"])
            rows.append([name, f"{part['tokens']:,}", *_costs(part, alone)])
        heads = [AXES.get(axis, axis), "tokens", "clean CE", "all together, ΔCE [95 %]", "one layer alone, median"]
        yield from table(heads, rows)


def _costs(part: dict[str, Any], alone: Iterator[dict[str, Any]]) -> list[str]:
    middle = statistics.median(one["delta_ce"]["nats"] for one in alone)
    return [plain(part["ce"]["clean"]), cost(part["delta_ce"]), nats(middle)]
