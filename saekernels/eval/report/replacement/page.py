"""Layers that are replaced together, as one HTML page of the record of `evaluate_replacement`."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from saekernels.display.html import Tile, document
from saekernels.display.numbers import counted, number, number_interval, percent, signed, with_interval
from saekernels.eval.report.abbreviations import marked, note
from saekernels.eval.report.replacement.charts import (
    baseline_section,
    causal,
    cost_section,
    joint_section,
    layer_section,
    source_section,
)
from saekernels.eval.report.replacement.domains import elsewhere_section, strata_section, transfer_section

_HIDDEN = ("command",)


def replacement_page(result: Mapping[str, Any]) -> str:
    """One self-contained HTML page."""
    documents = result["documents"]
    facts = (
        f"{counted(result['tokens'], 'token')} of {counted(documents['measured'], 'document')} measured, "
        f"{counted(documents['fitted'], 'document')} fitted on, windows of {result['context']} tokens, "
        f"seed {result['seed']}"
    )
    sections = [
        joint_section(result),
        baseline_section(result),
        source_section(result),
        layer_section(result),
        strata_section(result),
        elsewhere_section(result),
        transfer_section(result),
        cost_section(result),
        ("How it was measured", _method(result)),
    ]
    return document(
        f"Replaced layers of {result['model']}",
        reading(result),
        [section for section in sections if section],
        result,
        facts=facts,
        notes=result["notes"],
        tiles=_tiles(result),
        mark=marked,
    )


def reading(result: Mapping[str, Any]) -> str:
    """What the result says, in a sentence or two."""
    runs = {row["run"]: row for row in result["runs"]}
    first = result["runs"][0]
    delta = first["delta_ce"]["value"]
    kind = result["replacement"].removesuffix("s")
    each = " each" if result["replacement"] == "transcoders" else ""
    subject = f"Replacing {counted(len(result['layers']), 'layer')} by a {kind}{each}"
    if not causal(result):
        subject += ", with codes of clean passes,"
    if delta is None:
        return f"{subject} gives a loss that is not finite."
    verb = "raises" if delta >= 0 else "lowers"
    text = (
        f"{subject} {verb} the loss from {number(result['clean_ce'])} to {number(first['ce'])} nats per token "
        f"({_shown(first['delta_ce'])})"
    )
    if causal(result):
        text += (
            "; as long as the codes are those of the clean model it costs "
            f"{_shown(runs['teacher_forced']['delta_ce'])}, so {_shown(result['compounding'])} is compounding"
        )
    told = {"affine": "linear maps of the same rank cost", "zero": "writing nothing costs"}
    told = {run: f"{words} {_shown(runs[run]['delta_ce'])}" for run, words in told.items() if run in runs}
    return "; ".join([text, *told.values()]) + "."


def _tiles(result: Mapping[str, Any]) -> list[Tile]:
    runs = {row["run"]: row for row in result["runs"]}
    first, forced = result["runs"][0], runs["teacher_forced"]
    name, kl, top1 = first["run"].replace("_", "-"), first["kl"], first["top1"]
    tiles = [Tile(f"ΔCE {name}, nats per token", signed(first["delta_ce"]["value"]), _interval(first["delta_ce"]))]
    if causal(result):
        tiles.append(Tile("ΔCE teacher-forced", signed(forced["delta_ce"]["value"]), _interval(forced["delta_ce"])))
        tiles.append(Tile("compounding", signed(result["compounding"]["value"]), _interval(result["compounding"])))
    return [
        *tiles,
        Tile(f"KL {name}", number(kl["value"]), number_interval(kl["value"], kl["ci95"]).partition(" ")[2]),
        Tile(f"top-1 {name}", percent(top1["value"]), _percents(top1)),
    ]


def _shown(estimate: Mapping[str, Any]) -> str:
    return with_interval(estimate["value"], estimate["ci95"])


def _interval(estimate: Mapping[str, Any]) -> str:
    return _shown(estimate).partition(" ")[2]


def _percents(estimate: Mapping[str, Any]) -> str:
    return "[{}, {}]".format(*map(percent, estimate["ci95"])) if estimate["ci95"] else ""


def _method(result: Mapping[str, Any]) -> str:
    run, bootstrap = result["run"], result["bootstrap"]
    how = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in run.items() if key not in _HIDDEN)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "ΔCE is the cross-entropy of the replaced model minus that of the clean one. Intervals are 95 % percentile "
        f"intervals of {bootstrap['samples']:,} bootstrap replicates over documents, the same for every run. Means and "
        "maps are fitted on every other document of each domain, and all runs are measured on the rest.",
        result["mask"],
        f"Run: {how}.",
        f"Versions: {versions}.",
    ]
    made = "\n".join(map(note, lines))
    command = run.get("command")
    return made + (f"\n<p>To reproduce:</p>\n<pre>{escape(command)}</pre>" if command else "")
