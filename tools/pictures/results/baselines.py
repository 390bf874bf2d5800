"""What else could stand at the sites, from a report of `saekernels eval` with baselines; and the same on more text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from results.cells import cost, layer, nats, percent, table, text_size

KINDS = {"pca": "PCA", "random": "random errors", "mean": "mean", "zero": "zero"}


def baselines(report: dict[str, Any]) -> Iterator[str]:
    """Every site alone, then all together, beside each kind of baseline that the report has."""
    rows = [*report["sites"], report["all_sites"]]
    kinds = [kind for kind in KINDS if kind in report["all_sites"]["baselines"]]
    yield f"On {text_size(report)}."
    if "pca" in kinds:
        yield from _beside_pca(report)
    yield ""
    heads = ["layer", "SAE [95 %]", *(KINDS[kind] for kind in kinds)]
    if "pca" in kinds:
        heads.insert(2, "SAE − PCA [95 %]")
    yield from table([*heads, "recovered"], (_row(row, kinds) for row in rows))
    yield ""
    yield "ΔCE in nats per token of what stands at the same positions: PCA, a linear probe of as many principal"
    yield "components as the SAE has active latents; errors of the SAE's norm in random directions; the mean"
    yield "activation; zeros."
    yield "Recovered: the share of what the mean activation costs that the SAE does not, the score that is usual."


def _beside_pca(report: dict[str, Any]) -> Iterator[str]:
    less = [row for row in report["sites"] if (row["baselines"]["pca"]["spliced_minus_ci95"] or [0, 0])[1] < 0]
    together = report["all_sites"]["baselines"]["pca"]
    yield f"Alone, the SAE costs less than PCA of its rank at {len(less)} of {len(report['sites'])} layers, by"
    difference = nats(together["spliced_minus"], together["spliced_minus_ci95"])
    yield f"intervals paired by document; all together, SAEs minus PCA is {difference} nats."


def _row(row: dict[str, Any], kinds: list[str]) -> list[str]:
    found = row["baselines"]
    cells = [layer(row["site"]), cost(row["delta_ce"])]
    if "pca" in kinds:
        cells.append(nats(found["pca"]["spliced_minus"], found["pca"]["spliced_minus_ci95"]))
    cells += [nats(found[kind]["delta_ce"]) for kind in kinds]
    return [*cells, percent(row["loss_recovered"]["mean"])]


def more_text(report: dict[str, Any], before: dict[str, Any]) -> Iterator[str]:
    """Alone and together on more text, beside the figures of the report `before`."""
    old = {row["site"]: row for row in before["sites"]}
    alone = [row["delta_ce"]["nats"] for row in report["sites"]]
    yield f"On {text_size(report)}, all together cost {cost(report['all_sites']['delta_ce'])} nats,"
    yield f"each alone {min(alone):+.3f} to {max(alone):+.3f}, {statistics.median(alone):+.3f} in the median."
    yield ""
    heads = ["layer", "ΔCE alone [95 %]", f"on {before['tokens']:,} tokens", "KL", "top-1"]
    rows = []
    for row in [*report["sites"], report["all_sites"]]:
        other = before["all_sites"] if row is report["all_sites"] else old.get(row["site"])
        beside = nats(other["delta_ce"]["nats"] if other else None)
        shown = [layer(row["site"]), cost(row["delta_ce"]), beside, f"{row['kl']:.3f}"]
        rows.append([*shown, percent(row["top1_agreement"])])
    yield from table(heads, rows)
