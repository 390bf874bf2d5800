"""The curves of a record of `saekernels over`: figures with intervals by line, one for each checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saekernels.display.numbers import (
    Interval,
    number,
    number_interval,
    percent_interval,
    readable,
    short_sites,
    with_interval,
)
from saekernels.eval.report.breadth_text import shown

# {"value": ..., "ci95": ...}; None where there is none.
Figure = Mapping[str, Any] | None
Row = Mapping[str, Any]
JOINT = "all"


@dataclass(frozen=True)
class Chart:
    """One question to the training. written: how a value and its interval are put in tables; dashed: ends of lines."""

    heading: str
    ylabel: str
    lines: Mapping[str, Sequence[Figure]]
    meaning: str
    written: Callable[[Any, Any], str] = with_interval
    dashed: str = ""

    def cells(self, at: int) -> list[str]:
        """Of one checkpoint."""
        figures = [line[at] for line in self.lines.values()]
        return ["-" if one is None else self.written(one["value"], one["ci95"]) for one in figures]


def labels(result: Row) -> list[str]:
    """Where the checkpoints stand on the axis."""
    return [readable(row["seen"]) for row in result["checkpoints"]]


def charts(result: Row) -> list[Chart]:
    """Of everything that was measured."""
    rows = result["checkpoints"]
    targets = list(rows[0]["losses"]["targets"])
    _, names = short_sites([target for target in targets if target != JOINT])
    names = {**names, JOINT: JOINT}
    made = [*_losses(rows, targets, names), *_shares(result, rows, targets, names)]
    made += _reuse(rows, names) if "reuse" in rows[0] else []
    made += [_breadth(rows)] if "breadth" in rows[0] else []
    made += [_tasks(rows)] if "tasks" in rows[0] else []
    return made


def _whole(value: float | None, interval: Interval | None) -> str:
    ends = f" [{number(interval[0], 0)}, {number(interval[1], 0)}]" if interval else ""
    return number(value, 0) + ends


def _plain(value: float | None) -> Figure:
    return {"value": value, "ci95": None}


def _lines(rows: Sequence[Row], names: Mapping[str, str], of: Callable[[Row, str], Figure]) -> dict[str, list[Figure]]:
    return {short: [of(row, entry) for row in rows] for entry, short in names.items()}


def _losses(rows: Sequence[Row], targets: Sequence[str], names: Mapping[str, str]) -> list[Chart]:
    joint = targets[-1]
    kept = {target: names[target] for target in targets}

    def cost(figure: str) -> dict[str, list[Figure]]:
        return _lines(rows, kept, lambda row, target: row["losses"]["targets"][target][figure])

    def bounded(lines: dict[str, list[Figure]]) -> dict[str, list[Figure]]:
        return {name: [one if one and one["ci95"] else None for one in line] for name, line in lines.items()}

    both = {
        "clean": [_plain(row["losses"]["clean_ce"]) for row in rows],
        f"spliced, {names[joint]}": [_plain(row["losses"]["targets"][joint]["spliced_ce"]) for row in rows],
    }

    def fit(figure: str) -> dict[str, list[Figure]]:
        alone = {target: name for target, name in kept.items() if target != JOINT}
        return _lines(rows, alone, lambda row, target: _plain(row["losses"]["targets"][target][figure]))

    delta = "What the splice adds, 95 % intervals over documents. A model that knows little has little to lose."
    recovered = (
        "The share of the loss between mean ablation of the same sites and the clean model that the SAEs leave; none "
        "where the ablation does not raise the loss in every resample, so that no interval is known."
    )
    left = "The share of the activations' variance that the SAE leaves out."
    active = "Where they differ between checkpoints, the other curves compare SAEs of unlike size."
    return [
        Chart("Loss", "CE, nats per token", both, "Of the model as it was, and with its SAEs in.", number_interval),
        Chart("What the splice costs", "ΔCE, nats per token", cost("delta_ce"), delta),
        Chart("Loss recovered", "of mean ablation", bounded(cost("recovered")), recovered, percent_interval),
        Chart("Variance left out", "FVU", fit("fvu"), left, number_interval),
        Chart("Active latents", "L0", fit("l0"), active, number_interval),
    ]


def _shares(result: Row, rows: Sequence[Row], targets: Sequence[str], names: Mapping[str, str]) -> list[Chart]:
    kept = {target: names[target] for target in targets}
    own = _lines(rows, kept, lambda row, target: row["training_share"].get(target))
    meaning = (
        "The earlier checkpoint that predicts as well as the spliced model, by what it has seen, as a share of what "
        "this one has; by interpolation along this training. None where the spliced model is worse than the first step."
    )
    made = [Chart("What is left of the training", "share of its training", own, meaning, percent_interval)]
    if result["family"]:
        kept = {"clean": "clean", **kept}
        worth = _lines(rows, kept, lambda row, target: row["family_share"].get(target))
        meaning = f"Effective compute in the family {result['family']}, as a share of its largest member's."
        made.append(Chart("Effective compute", "share of compute", worth, meaning, percent_interval))
    return made


def _reuse(rows: Sequence[Row], names: Mapping[str, str]) -> list[Chart]:
    sites = {entry: name for entry, name in names.items() if entry in rows[0]["reuse"]}
    overlap = {
        f"{name} {figure}": [row["reuse"][entry]["effect"][figure] for row in rows]
        for entry, name in sites.items()
        for figure in ("general", "ceiling")
    }
    shared = (
        "By effect on the loss. general: what two domains share of what their latents do; ceiling: the same for two "
        "halves of one domain, so what full sharing looks like in as much text."
    )

    def single(kind: str, figure: str) -> dict[str, list[Figure]]:
        return _lines(rows, sites, lambda row, entry: row["reuse"][entry][kind][figure])

    distinct = "How many different dictionaries the domains use in effect, from 1 to the number of domains."
    carriers = "How many latents carry 90 % of what all domains' latents do, by effect on the loss."
    error = _lines(rows, sites, lambda row, entry: row["reuse"][entry]["approximation_error"])
    trust = "Of effects by gradients against true removals: near 1, the figures by effect mean nothing there."
    return [
        Chart("What domains share", "overlap", overlap, shared, percent_interval, dashed=" ceiling"),
        Chart("Distinct dictionaries", "by effect", single("effect", "distinct"), distinct, number_interval),
        Chart("The same by activation mass", "by mass", single("mass", "distinct"), distinct, number_interval),
        Chart("Latents that carry 90 %", "latents", single("effect", "carriers"), carriers, _whole),
        Chart("Error of the effects", "of true removals", error, trust, percent_interval),
    ]


def _breadth(rows: Sequence[Row]) -> Chart:
    first = rows[0]["breadth"]
    rank = f"rank {first['ranks'][-1]}"
    narrow, broad = first["levels"][0], first["levels"][-1]
    ends = {
        f"{rank} inside": (0, rank, "inside"),
        f"{rank} outside": (0, rank, "outside"),
        f"{rank} of everything": (-1, rank, "inside"),
        shown("sae"): (-1, "sae", "inside"),
    }

    def at(row: Row, level: int, method: str, side: str) -> Figure:
        found = row["breadth"]["levels"][level]["methods"][method][side]
        return found and {"value": found["delta_ce"], "ci95": found["ci95"]}

    lines = {name: [at(row, *end) for row in rows] for name, end in ends.items()}
    meaning = (
        f"At {first['site']}: an affine probe fitted on {narrow['name']}, spliced inside that slice and outside of it, "
        f"and one of the same rank fitted on {broad['name']}, beside the SAE."
    )
    return Chart("Narrow probes", "ΔCE, nats per token", lines, meaning)


def _tasks(rows: Sequence[Row]) -> Chart:
    lines = {
        f"{task['name']} {kind}": [_plain(row["tasks"][number][kind]) for row in rows]
        for number, task in enumerate(rows[0]["tasks"])
        for kind in ("clean", "spliced")
    }
    meaning = "log p(answer) - log p(foil), mean over prompts: above 0 the model prefers the answer."
    return Chart("Narrow tasks", "logit difference, nats", lines, meaning, dashed=" spliced")
