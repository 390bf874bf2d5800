"""Transcoders in place of MLPs, from a report of `saekernels eval`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from results.cells import cost, layer, nats, percent, plain, table, text_size


def transcoders(report: dict[str, Any]) -> Iterator[str]:
    """Each alone, then all together."""
    rows, together = report["sites"], report["all_sites"]
    alone = [row["delta_ce"]["nats"] for row in rows]
    yield f"{len(rows)} transcoders, each from an MLP's input to its output, on {text_size(report)}:"
    yield f"{min(alone):+.3f} to {max(alone):+.3f} nats alone, {statistics.median(alone):+.3f} in the median, and"
    yield f"{cost(together['delta_ce'])} all together."
    yield ""
    kinds = [kind for kind in ("pca", "mean", "zero") if kind in together["baselines"]]
    heads = [
        "MLP of layer",
        "ΔCE [95 %]",
        "KL",
        "L0",
        "FVU",
        "dead",
        *({"pca": "PCA"}.get(kind, kind) for kind in kinds),
        "recovered",
    ]
    yield from table(heads, (_row(row, kinds) for row in [*rows, together]))
    yield ""
    yield "Mean and zero: in place of the same MLPs' outputs."
    yield "Recovered: the share of what the mean costs that the transcoder does not."


def _row(row: dict[str, Any], kinds: list[str]) -> list[str]:
    cells = [layer(row["site"]), cost(row["delta_ce"]), plain(row["kl"]), plain(row["l0"], digits=0)]
    cells += [plain(row["fvu"]), percent(row["dead_fraction"], 0)]
    cells += [nats(row["baselines"][kind]["delta_ce"]) for kind in kinds]
    return [*cells, percent(row["loss_recovered"]["mean"])]
