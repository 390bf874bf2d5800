"""Sections of the page of replaced layers: runs, baselines, layers, costs. (heading, HTML), or None for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from saekernels.display.charts import BLUE, GREY, ORANGE, curves
from saekernels.display.html import Cell
from saekernels.display.numbers import (
    number,
    number_interval,
    percent_interval,
    readable,
    short_sites,
    with_interval,
)
from saekernels.display.rows import Scale, axis, bar, interval_line, linear_scale, log_scale, point, row_chart
from saekernels.eval.report.abbreviations import marked, note, table

Section = tuple[str, str] | None
GREEN = "#4c9f70"
_JOINT = ("joint", "teacher_forced", "own", "cross", "error", "beside")
_AFFINE = ("affine_full", "affine", "affine_across", "affine_shared")
_BASELINES = ("beside", *_AFFINE, "skip", "permuted", "mean", "zero")
_HEADINGS = ("ΔCE nats [95 %]", "KL [95 %]", "top-1 [95 %]", "unsure [95 %]")


def causal(result: Mapping[str, Any]) -> bool:
    """Whether there is a joint run, the first one then; else that is the teacher-forced one."""
    return bool(result.get("causal", True))


def first_of(result: Mapping[str, Any]) -> str:
    """The run that others are compared with."""
    return str(result["runs"][0]["run"])


def shown(estimate: Mapping[str, Any]) -> str:
    """A figure with its sign, and its interval."""
    return with_interval(estimate["value"], estimate["ci95"])


def scale_of(estimates: Sequence[Mapping[str, Any]]) -> Scale:
    """A scale that holds every figure and its interval."""
    return linear_scale(value for one in estimates for value in (one["value"], *(one["ci95"] or ())))


def bar_of(scale: Scale, estimate: Mapping[str, Any], colour: str) -> Cell:
    """One row of a chart: a bar and its interval."""
    marks = [bar(scale, estimate["value"], colour), interval_line(scale, estimate["ci95"])]
    return row_chart(scale, marks, f"{shown(estimate)} nats per token")


def name_of(row: Mapping[str, Any]) -> Cell:
    """A run; hover says what it is."""
    return Cell(escape(row["run"].replace("_", " ")), row["meaning"])


def _colour(run: str) -> str:
    """Orange is all layers together, in every chart; blue is what stands beside it."""
    return {"joint": ORANGE, "beside": BLUE, "teacher_forced": BLUE}.get(run, GREEN)


def _headings(result: Mapping[str, Any]) -> list[str]:
    return [*_HEADINGS, f"more than {first_of(result).replace('_', '-')} [95 %]"]


def _cells(row: Mapping[str, Any], first: str) -> list[str | Cell]:
    return [
        shown(row["delta_ce"]),
        number_interval(row["kl"]["value"], row["kl"]["ci95"]),
        percent_interval(row["top1"]["value"], row["top1"]["ci95"]),
        percent_interval(row["top1_unsure"]["value"], row["top1_unsure"]["ci95"]),
        shown(row[f"over_{first}"]) if f"over_{first}" in row else "-",
    ]


def joint_section(result: Mapping[str, Any]) -> Section:
    """The joint run beside the teacher-forced one, and the parts of the decoder; or each layer alone."""
    first = first_of(result)
    rows = [row for row in result["runs"] if row["run"] in _JOINT or row["run"].startswith("only_")]
    scale = scale_of([row["delta_ce"] for row in rows])
    lines = [[name_of(row), bar_of(scale, row["delta_ce"], _colour(row["run"])), *_cells(row, first)] for row in rows]
    text = (
        f"Unsure: over the {result['unsure_tokens']:,} tokens that the clean model gets right with a probability below "
        f"{result['unsure_below']:.0%}. More than {first.replace('_', '-')}: paired by document."
    )
    headings: list[str | Cell] = ["run", axis(scale, marked("ΔCE, nats per token")), *_headings(result)]
    if not causal(result):
        told = "Teacher-forced: the codes are those of a clean pass, at all layers; only N: at layer N alone. "
        return "Teacher-forced, at all layers and at each alone", table(headings, lines) + note(told + text)
    told = (
        "Joint: every layer reads the model as replaced so far; teacher-forced: the codes are those of the clean "
        "model. Their difference is what compounding costs. "
    )
    return "Joint beside teacher-forced", table(headings, lines) + note(told + text)


def baseline_section(result: Mapping[str, Any]) -> Section:
    """The distance of every baseline from the clean model, on a logarithmic scale."""
    rows = {row["run"]: row for row in result["runs"]}
    kept = [rows[name] for name in (first_of(result), *_BASELINES) if name in rows]
    scale = log_scale(value for row in kept for value in (row["delta_ce"]["value"], *(row["delta_ce"]["ci95"] or ())))
    lines: list[list[str | Cell]] = []
    for row in kept:
        delta, colour = row["delta_ce"], _colour(row["run"])
        marks = [interval_line(scale, delta["ci95"]), point(scale, delta["value"], colour, _shape(row["run"]))]
        ranks = ", ".join(map(str, dict.fromkeys(row["ranks"]))) if "ranks" in row else "-"
        lines.append(
            [
                name_of(row),
                row_chart(scale, marks, shown(delta)),
                *_cells(row, first_of(result)),
                Cell(ranks, kind="words"),
            ]
        )
    text = (
        "Distance from the clean model; what does not raise the loss has no place on a logarithmic scale. Means and "
        "maps were fitted on other documents. Where a linear map of the same rank comes close, sparsity bought nothing."
    )
    headings: list[str | Cell] = ["run", axis(scale, marked("ΔCE, nats per token, logarithmic")), *_headings(result)]
    headings.append("ranks")
    return "Against honest baselines", table(headings, lines) + note(text)


def _shape(run: str) -> str:
    return {"joint": "diamond", "beside": "diamond", "zero": "cross", "mean": "square"}.get(run, "circle")


def source_section(result: Mapping[str, Any]) -> Section:
    """The first layers alone, one more each time, and each layer's codes switched off."""
    rows = {row["run"]: row for row in result["runs"]}
    layers = range(len(result["layers"]))
    first = [rows.get(f"first_{layer + 1}") for layer in layers[:-1]]
    if None in first or not first:
        return None
    together = [*(row for row in first if row), rows["joint"]]
    estimates = [row["delta_ce"] for row in together]
    name = "the first layers replaced"
    chart = curves(
        [str(layer) for layer in layers],
        {name: [one["value"] for one in estimates]},
        "ΔCE, nats per token",
        "replaced up to layer",
        bands={name: [one["ci95"] for one in estimates]},
        colours={name: ORANGE},
    )
    without = [rows[f"without_{layer}"] for layer in layers if f"without_{layer}" in rows]
    scale = scale_of([row["over_joint"] for row in without])
    lines: list[list[str | Cell]] = []
    for layer in layers:
        cells: list[str | Cell] = [str(layer), shown(estimates[layer])]
        if without:
            cells += [bar_of(scale, without[layer]["over_joint"], GREY), shown(without[layer]["over_joint"])]
        lines.append(cells)
    headings: list[str | Cell] = ["layer", "replaced up to it [95 %]"]
    if without:
        headings += [axis(scale, marked("switched off: ΔCE more than joint, nats per token")), "switched off [95 %]"]
    text = "Switched off: the codes of that layer are zero wherever they write, and all else is joint."
    body = f'<div class="side"><div class="chart">{chart}</div>{table(headings, lines)}</div>'
    return "Layer by layer", body + (note(text) if without else "")


def layer_section(result: Mapping[str, Any]) -> Section:
    """How well each layer is reconstructed, and what of its latents is active."""
    layers, joint = result["layers"], causal(result)
    kinds = {"joint": "fvu_joint", "teacher-forced": "fvu_teacher_forced", "drift": "fvu_drift"}
    kinds = {name: key for name, key in kinds.items() if joint or name == "teacher-forced"}
    active = {"joint": "l0_joint", "teacher-forced": "l0_teacher_forced"}
    active = {name: key for name, key in active.items() if name in kinds}
    used = "used_joint" if joint else "used_teacher_forced"
    labels = [str(row["layer"]) for row in layers]
    lines = {name: [row[key] for row in layers] for name, key in kinds.items()}
    colours = {"joint": ORANGE, "teacher-forced": BLUE, "drift": GREY}
    chart = curves(labels, lines, "FVU", "layer", colours={name: colours[name] for name in kinds})
    _, names = short_sites([row["site"] for row in layers])
    rows: list[list[str | Cell]] = [
        [
            Cell(str(row["layer"]), names[row["site"]]),
            *(number(row[key]) for key in kinds.values()),
            *(number(row[key], 1) for key in active.values()),
            f"{row[used]:,} of {row['latents']:,}",
        ]
        for row in layers
    ]
    headings = ["layer", *(f"FVU {name}" for name in kinds), *(f"L0 {name}" for name in active), "used"]
    text = (
        "FVU of what is written, against the module that is replaced at the same input: that of the replaced model "
        "(joint), that of the clean one (teacher-forced). Drift: of what is written in the joint run, against what the "
        "clean model writes."
        if joint
        else "FVU of what is written, against the clean model."
    )
    if "used" in result:
        text += f" Latents used at any layer: {result['used']:,}."
    body = f'<div class="side"><div class="chart">{chart}</div>{table(headings, rows)}</div>'
    return "Reconstruction by layer", body + note(text)


def cost_section(result: Mapping[str, Any]) -> Section:
    """Parameters and flops of the replacement beside the model's own."""
    found = result["accounting"]
    replaced = found.get("replaced", {})
    figures = {"parameters": "parameters", "flops_per_token": "flops per token"}
    scales = {key: linear_scale(row[key] for row in found.values()) for key in figures}
    lines: list[list[str | Cell]] = []
    for name, row in found.items():
        cells: list[str | Cell] = [name.replace("_", " ")]
        colour = {"replaced": GREY, "replacement": ORANGE, "beside": BLUE}.get(name, GREEN)
        for key in figures:
            ratio = f"{row[key] / replaced[key]:.2f}x" if replaced.get(key) else "-"
            cells += [row_chart(scales[key], [bar(scales[key], row[key], colour)], readable(row[key]))]
            cells += [readable(row[key]), ratio]
        lines.append(cells)
    headings: list[str | Cell] = ["what"]
    for key, title in figures.items():
        headings += [_axis(scales[key], title), title, "of what is replaced"]
    l0 = result["l0"][first_of(result)]
    told = "Replaced: the modules between what is read and what is written. " if replaced else ""
    text = (
        f"{told}Flops: encoders dense, decoders by active latents. Over all layers {number(l0['latents'], 1)} latents "
        f"are active per token, {number(l0['pairs'], 1)} pairs of a latent and a layer that it writes at."
    )
    return "Parameters and compute", table(headings, lines) + note(text)


def _axis(scale: Scale, title: str) -> Cell:
    """An axis whose numbers are short, however large."""
    unit = max(abs(tick) for tick in scale.ticks)
    power = 3 * ((len(str(int(unit))) - 1) // 3)
    short = Scale(scale.low / 10**power, scale.high / 10**power, tuple(tick / 10**power for tick in scale.ticks))
    name = {0: "", 3: ", thousands", 6: ", millions", 9: ", billions"}.get(power, f", 1e{power}")
    return axis(short, escape(title + name))
