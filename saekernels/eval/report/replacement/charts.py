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
_BASELINES = ("joint", "beside", "affine_full", "affine", "affine_across", "skip", "permuted", "mean", "zero")
_HEADINGS = ("ΔCE nats [95 %]", "KL [95 %]", "top-1 [95 %]", "unsure [95 %]", "more than joint [95 %]")


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


def _cells(row: Mapping[str, Any]) -> list[str | Cell]:
    return [
        shown(row["delta_ce"]),
        number_interval(row["kl"]["value"], row["kl"]["ci95"]),
        percent_interval(row["top1"]["value"], row["top1"]["ci95"]),
        percent_interval(row["top1_unsure"]["value"], row["top1_unsure"]["ci95"]),
        shown(row["over_joint"]) if "over_joint" in row else "-",
    ]


def joint_section(result: Mapping[str, Any]) -> Section:
    """The joint run beside the teacher-forced one, and the parts of the decoder."""
    rows = [row for row in result["runs"] if row["run"] in _JOINT]
    scale = scale_of([row["delta_ce"] for row in rows])
    lines = [[name_of(row), bar_of(scale, row["delta_ce"], _colour(row["run"])), *_cells(row)] for row in rows]
    text = (
        "Joint: every layer reads the model as replaced so far; teacher-forced: the codes are those of the clean "
        "model. Their difference is what compounding costs. Unsure: over the "
        f"{result['unsure_tokens']:,} tokens that the clean model gets right with a probability below "
        f"{result['unsure_below']:.0%}. More than joint: paired by document."
    )
    headings: list[str | Cell] = ["run", axis(scale, marked("ΔCE, nats per token")), *_HEADINGS]
    return "Joint beside teacher-forced", table(headings, lines) + note(text)


def baseline_section(result: Mapping[str, Any]) -> Section:
    """The distance of every baseline from the clean model, on a logarithmic scale."""
    rows = {row["run"]: row for row in result["runs"]}
    kept = [rows[name] for name in _BASELINES if name in rows]
    scale = log_scale(value for row in kept for value in (row["delta_ce"]["value"], *(row["delta_ce"]["ci95"] or ())))
    lines: list[list[str | Cell]] = []
    for row in kept:
        delta, colour = row["delta_ce"], _colour(row["run"])
        marks = [interval_line(scale, delta["ci95"]), point(scale, delta["value"], colour, _shape(row["run"]))]
        ranks = ", ".join(map(str, dict.fromkeys(row["ranks"]))) if "ranks" in row else "-"
        lines.append([name_of(row), row_chart(scale, marks, shown(delta)), *_cells(row), Cell(ranks, kind="words")])
    text = (
        "Distance from the clean model; what does not raise the loss has no place on a logarithmic scale. Means and "
        "maps were fitted on other documents. Where a linear map of the same rank comes close, sparsity bought nothing."
    )
    headings: list[str | Cell] = ["run", axis(scale, marked("ΔCE, nats per token, logarithmic")), *_HEADINGS, "ranks"]
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
    layers = result["layers"]
    kinds = {"joint": "fvu_joint", "teacher-forced": "fvu_teacher_forced", "drift": "fvu_drift"}
    labels = [str(row["layer"]) for row in layers]
    lines = {name: [row[key] for row in layers] for name, key in kinds.items()}
    colours = {"joint": ORANGE, "teacher-forced": BLUE, "drift": GREY}
    chart = curves(labels, lines, "FVU", "layer", colours=colours)
    _, names = short_sites([row["site"] for row in layers])
    rows: list[list[str | Cell]] = [
        [
            Cell(str(row["layer"]), names[row["site"]]),
            *(number(row[key]) for key in kinds.values()),
            *(number(row[f"l0_{kind}"], 1) for kind in ("joint", "teacher_forced")),
            f"{row['used_joint']:,} of {row['latents']:,}",
        ]
        for row in layers
    ]
    headings = ["layer", *(f"FVU {name}" for name in kinds), "L0 joint", "L0 teacher-forced", "used"]
    text = (
        "FVU of what is written, against the MLP at the same input: that of the replaced model (joint), that of the "
        "clean one (teacher-forced). Drift: of what is written in the joint run, against what the clean model writes."
    )
    body = f'<div class="side"><div class="chart">{chart}</div>{table(headings, rows)}</div>'
    return "Reconstruction by layer", body + note(text)


def cost_section(result: Mapping[str, Any]) -> Section:
    """Parameters and flops of the replacement beside the model's own."""
    found = result["accounting"]
    replaced = found["replaced"]
    figures = {"parameters": "parameters", "flops_per_token": "flops per token"}
    scales = {key: linear_scale(row[key] for row in found.values()) for key in figures}
    lines: list[list[str | Cell]] = []
    for name, row in found.items():
        cells: list[str | Cell] = [name.replace("_", " ")]
        colour = {"replaced": GREY, "replacement": ORANGE, "beside": BLUE}.get(name, GREEN)
        for key in figures:
            ratio = f"{row[key] / replaced[key]:.2f}x" if replaced[key] else "-"
            cells += [row_chart(scales[key], [bar(scales[key], row[key], colour)], readable(row[key]))]
            cells += [readable(row[key]), ratio]
        lines.append(cells)
    headings: list[str | Cell] = ["what"]
    for key, title in figures.items():
        headings += [_axis(scales[key], title), title, "of what is replaced"]
    l0 = result["l0"]["joint"]
    text = (
        "Replaced: the modules between what is read and what is written. Flops: encoders dense, decoders by active "
        f"latents. Over all layers {number(l0['latents'], 1)} latents are active per token, {number(l0['pairs'], 1)} "
        "pairs of a latent and a layer that it writes at."
    )
    return "Parameters and compute", table(headings, lines) + note(text)


def _axis(scale: Scale, title: str) -> Cell:
    """An axis whose numbers are short, however large."""
    unit = max(abs(tick) for tick in scale.ticks)
    power = 3 * ((len(str(int(unit))) - 1) // 3)
    short = Scale(scale.low / 10**power, scale.high / 10**power, tuple(tick / 10**power for tick in scale.ticks))
    name = {0: "", 3: ", thousands", 6: ", millions", 9: ", billions"}.get(power, f", 1e{power}")
    return axis(short, escape(title + name))
