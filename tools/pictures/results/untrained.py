"""SAEs of which a part never learned, from reports of `saekernels eval` with several SAEs of one site.

Entries are named SITE#FREEZE-SEED, as `examples/train_saes.py --freeze` has them, or activations-SEED for a dictionary
of activations; `eval --control` adds its kind, SITE#none-0-shuffled_decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results.cells import NONE, layer, nats, percent, plain, table, text_size

KINDS = {
    "none": "trained",
    "decoder": "decoder frozen at random",
    "encoder": "encoder frozen at random",
    "both": "both frozen at random",
    "activations": "decoder of activations, frozen",
    "shuffled_decoder": "trained, then its decoder shuffled",
    "random_decoder": "trained, then its decoder random",
    "random_encoder": "trained, then its encoder random",
}


def untrained(*reports: dict[str, Any], beside: dict[str, Any]) -> Iterator[str]:
    """One row per kind, over its seeds; differences are from the first trained SAE of the same report.

    beside: the report of the SAEs that were trained at all layers in one pass.
    """
    first = reports[0]
    place = layer(first["sites"][0]["site"])
    yield f"At layer {place}, each alone, on {text_size(first)}; trained on the same tokens as the ordinary one."
    yield ""
    rows: dict[str, list[str]] = {}
    for report in reports:
        for kind, entries in _by_kind(report).items():
            rows.setdefault(kind, _row(kind, entries, report["extras"].get("paired", {})))
    yield from table(["SAE", "ΔCE by seed", "FVU", "L0", "dead", "more than the trained one [95 %]"], rows.values())
    yield ""
    yield "More: of the first seed, paired by document; FVU, L0 and the share of dead latents are the first seed's."
    yield from _again(first, beside)


def _again(report: dict[str, Any], beside: dict[str, Any]) -> Iterator[str]:
    """What the same commands give from scratch: the trained SAE of this report and that of all layers, same text."""
    mine = report["sites"][0]
    other = next((row for row in beside["sites"] if row["site"] == mine["site"].partition("#")[0]), None)
    if other is None or any(report[what] != beside[what] for what in ("tokens", "documents", "mask")):
        return
    off = abs(mine["delta_ce"]["nats"] - other["delta_ce"]["nats"])
    costs = " and ".join(nats(row["delta_ce"]["nats"]) for row in (mine, other))
    yield "The first seed, trained from scratch at this layer alone and with all others in one pass, costs"
    yield f"{costs}: {'the same to the last digit' if off == 0 else f'{off:.1e} apart'}."


def _by_kind(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Kind -> rows of the report, one for each seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in report["sites"]:
        kind, _, rest = row["site"].partition("#")[2].partition("-")
        found.setdefault(rest.partition("-")[2] or kind, []).append(row)
    return found


def _row(kind: str, entries: list[dict[str, Any]], paired: dict[str, Any]) -> list[str]:
    one = entries[0]
    more = paired.get(one["site"])
    return [
        KINDS[kind],
        ", ".join(nats(entry["delta_ce"]["nats"]) for entry in entries),
        plain(one["fvu"]),
        plain(one["l0"], digits=0),
        percent(one["dead_fraction"], 0),
        nats(more["difference"], more["ci95"]) if more else NONE,
    ]
