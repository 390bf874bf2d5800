"""Narrow uses beside the whole: tasks of `saekernels eval --tasks`, and probes of `saekernels probe`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results.cells import cost, layer, nats, percent, plain, table


def tasks(*reports: dict[str, Any]) -> Iterator[str]:
    """One table for the tasks of all reports, which are of one model."""
    found = [(_spliced(report), report) for report in reports]
    names = [one["name"] for one in reports[0]["extras"]["tasks"]["tasks"]]
    heads = ["task", "clean", *(part for name, _ in found for part in (name, "recovered [95 %]"))]
    rows = []
    for number, name in enumerate(names):
        own = [report["extras"]["tasks"]["tasks"][number] for report in reports]
        cells = [name, _difference(own[0], "clean")]
        for one in own:
            cells += [_difference(one, "spliced"), plain(one["recovered"], one["recovered_ci95"], 2)]
        rows.append(cells)
    yield from table(heads, rows)
    yield ""
    yield "The mean difference of log p between answer and foil, nats, and how often it is positive; recovered:"
    yield "spliced over clean."
    yield "Over ordinary text, as much as each of these runs read of it:"
    for place, (name, report) in enumerate(found, 1):
        end = "." if place == len(found) else ","
        yield f"the SAEs of {name} cost {cost(report['all_sites']['delta_ce'])} on {report['tokens']:,} tokens{end}"


def _spliced(report: dict[str, Any]) -> str:
    sites = report["sites"]
    return f"{len(sites)} layers" if len(sites) > 1 else f"layer {layer(sites[0]['site'])}"


def _difference(one: dict[str, Any], which: str) -> str:
    return f"{nats(one[which])} ({percent(one[f'{which}_accuracy'], 0)})"


def probes(record: dict[str, Any], report: dict[str, Any]) -> Iterator[str]:
    """One table per labelled set, and one of the model's own answers where it has them; ΔCE of the report's sites."""
    for one in record["sets"]:
        tested = one["tested_on"]["positive"] + one["tested_on"]["negative"]
        fields = list(one["sites"][0]["methods"][0]["out"])
        negative = " or ".join(one["negative"])
        yield f"**{one['name']}**: {one['positive']} or {negative}, tested on {tested:,} texts of groups held out."
        yield ""
        heads = ["layer", "probe on", "AUROC [95 %]", *(f"other {field} [95 %]" for field in fields)]
        yield from table(heads, (_probe(site, row) for site in one["sites"] for row in site["methods"]))
        yield ""
        if one["answers"]:
            yield from table(["spliced", "log p, answer − foil [95 %]", "right", "own score [95 %]"],
                             map(_answer, one["answers"]))  # fmt: skip
            yield ""
    yield "AUROC over held-out texts; other: fitted on the rest of that field's values, tested on each, their mean."
    yield "Own score: AUROC of log p of the continuation that a text has, which is what the model itself says of it."
    probed = {site["site"] for one in record["sets"] for site in one["sites"]}
    beside = [
        f"{cost(row['delta_ce'])} at layer {layer(row['site'])}" for row in report["sites"] if row["site"] in probed
    ]
    if beside:
        yield f"Over all text the same SAEs cost {', '.join(beside)}."


def _probe(site: dict[str, Any], row: dict[str, Any]) -> list[str]:
    figures = (row["in"], *row["out"].values())
    return [layer(site["site"]), row["method"], *(plain(one["value"], one["ci95"]) for one in figures)]


def _answer(one: dict[str, Any]) -> list[str]:
    difference, score = one["logit_difference"], one["own_score_auroc"]
    name = {"clean": "nothing", "all": "all of these"}.get(one["splice"]) or f"layer {layer(one['splice'])}"
    shown = nats(difference["value"], difference["ci95"])
    return [name, shown, percent(one["accuracy"]["value"]), plain(score["value"], score["ci95"])]
