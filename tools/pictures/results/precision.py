"""The evaluation in bfloat16 beside that in float32: how far each figure moves, and how much sooner it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results.cells import cost, nats, percent, table

FIGURES = ("ΔCE", "KL", "top-1", "FVU", "L0")


def precision(record: dict[str, Any], report: dict[str, Any], floor: dict[str, Any] | None) -> Iterator[str]:
    """record: a report in bfloat16 of the sites and the text of `report`; floor: times of both, in turns."""
    joint = record["all_sites"]["delta_ce"]
    yield f"With `--dtype bfloat16`, all together cost {cost(joint)} nats; of the same text and SAEs,"
    yield "what each figure is off by beside float32:"
    yield ""
    before = {row["site"]: row for row in report["sites"]}
    moved = [_moved(row, before[row["site"]]) for row in record["sites"]]
    rows = []
    for place, name in enumerate(FIGURES):
        shown = percent if name == "top-1" else nats
        largest = max((one[place] for one in moved), key=abs)
        rows.append([name, shown(largest), shown(_moved(record["all_sites"], report["all_sites"])[place])])
    yield from table(["figure", "the most at one layer", "all together"], rows)
    yield ""
    yield "FVU all together is a mean over layers of ratios in which a few positions with large errors count most."
    if floor is not None and "beside" in floor:
        faster = floor["beside"]
        yield ""
        yield f"In one process and in turns, at {len(floor['sites'])} layers: {floor['evaluate_seconds']:.1f} s in"
        yield f"{floor['dtype']}, {faster['evaluate_seconds']:.1f} s in {faster['dtype']},"
        each = ", ".join(f"{one:.2f}" for one in faster["ratios"])
        yield f"{faster['ratio']:.2f} times as fast (each {each})."


def _moved(row: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Each of FIGURES less the other's."""

    def figures(one: dict[str, Any]) -> list[float]:
        return [one["delta_ce"]["nats"], one["kl"], one["top1_agreement"], one["fvu"], one["l0"]]

    return [mine - its for mine, its in zip(figures(row), figures(other), strict=True)]
