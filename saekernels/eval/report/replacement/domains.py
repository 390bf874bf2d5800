"""Sections of the page of replaced layers: strata, and what was fitted or selected on one domain alone."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from saekernels.display.charts import BLUE, ORANGE
from saekernels.display.html import Cell
from saekernels.display.numbers import percent_interval, signed
from saekernels.display.rows import axis, bar, interval_line, legend, linear_scale, point, row_chart
from saekernels.eval.report.abbreviations import marked, note, table
from saekernels.eval.report.replacement.charts import GREEN, Section, causal, first_of, shown


def strata_section(result: Mapping[str, Any]) -> Section:
    """ΔCE of the first run in each stratum, with the teacher-forced one."""
    first = first_of(result)
    rows = [(kind, row) for kind, strata in result["strata"].items() if len(strata) > 1 for row in strata]
    if not rows:
        return None
    further = [run for run in ("affine", "affine_shared", "zero", "beside") if run in rows[0][1]["runs"]]
    deltas = [{run: row["runs"][run]["delta_ce"] for run in (first, "teacher_forced", *further)} for _, row in rows]
    ends = [(one["value"], *(one["ci95"] or ())) for each in deltas for one in (each[first], each["teacher_forced"])]
    scale = linear_scale(value for own in ends for value in own)
    lines: list[list[str | Cell]] = []
    name = first.replace("_", "-")
    keys = {"joint": (ORANGE, "square"), "teacher-forced": (BLUE, "circle")}
    keys = keys if causal(result) else {name: (BLUE, "square")}
    for (kind, row), each in zip(rows, deltas, strict=True):
        marks = [bar(scale, each[first]["value"], keys[name][0]), interval_line(scale, each[first]["ci95"])]
        if causal(result):
            marks.append(point(scale, each["teacher_forced"]["value"], BLUE))
        hover = [f"{run.replace('_', '-')} {shown(each[run])}" for run in dict.fromkeys((first, "teacher_forced"))]
        chart = row_chart(scale, marks, "\n".join(hover))
        top1 = row["runs"][first]["top1"]
        figures = [shown(each[run]) for run in each]
        lines.append(
            [
                f"{kind} {row['name']}",
                chart,
                f"{row['tokens']:,}",
                *figures,
                percent_interval(top1["value"], top1["ci95"]),
            ]
        )
    named = [f"{run.replace('_', ' ')} [95 %]" for run in deltas[0]]
    headings: list[str | Cell] = ["stratum", axis(scale, marked("ΔCE, nats per token")), "tokens", *named]
    headings.append(f"top-1 {name} [95 %]")
    text = "Position: tokens of context before the predicted one. Frequency: the predicted token's share of this text."
    return "By stratum", legend(keys) + table(headings, lines) + note(text)


def elsewhere_section(result: Mapping[str, Any]) -> Section:
    """What was fitted or selected on one domain alone, there and elsewhere."""
    found = result["extrapolation"]
    if not found or not found["rows"]:
        return None
    kinds = ("inside", "outside")
    scale = linear_scale(
        value for row in found["rows"] for kind in kinds for value in (row[kind]["value"], *(row[kind]["ci95"] or ()))
    )
    lines: list[list[str | Cell]] = []
    for row in found["rows"]:
        marks = []
        for kind, mark in zip(kinds, ((BLUE, "circle"), (GREEN, "triangle")), strict=True):
            marks += [interval_line(scale, row[kind]["ci95"], mark[0]), point(scale, row[kind]["value"], *mark)]
        chart = row_chart(scale, marks, "\n".join(f"{kind} {shown(row[kind])}" for kind in kinds))
        figures = [shown(row[one]) for one in (*kinds, "whole_inside", "whole_outside", "price")]
        lines.append([row["run"], chart, f"{row['positions']:,}", *figures])
    headings: list[str | Cell] = ["run", axis(scale, marked("ΔCE, nats per token")), "positions fitted on"]
    headings += ["in its domain [95 %]", "elsewhere [95 %]", "its like there [95 %]", "its like elsewhere [95 %]"]
    headings.append("price [95 %]")
    text = (
        "RUN@DOMAIN: maps fitted on that domain alone; for joint, only latents that are active somewhere in the half "
        "of it that is fitted on. Its like: fitted on everything, or with all latents. Price: what having seen one "
        "domain alone costs elsewhere, paired by document."
    )
    keys = {"in its domain": (BLUE, "circle"), "elsewhere": (GREEN, "triangle")}
    return "Inside one domain and elsewhere", legend(keys) + table(headings, lines) + note(text)


def transfer_section(result: Mapping[str, Any]) -> Section:
    """Each run, fitted or selected on each domain, on each domain."""
    found = result["extrapolation"]
    matrices = [one for one in found["transfer"] if len(one["from"]) > 2] if found else []
    if not matrices:
        return None
    parts = []
    for one in matrices:
        most = max((cell["value"] or 0.0 for row in one["delta_ce"] for cell in row), default=0.0)
        lines: list[list[str | Cell]] = [
            [source or "everything", *(_shaded(cell, most, source == name) for name, cell in zip(on, row, strict=True))]
            for on in [one["on"]]
            for source, row in zip(one["from"], one["delta_ce"], strict=True)
        ]
        parts.append(table([f"{one['run'].replace('_', ' ')} from", *(f"on {name}" for name in one["on"])], lines))
    text = "ΔCE, nats per token, with its 95 % interval. Bold: measured on other documents of the domain it comes from."
    return "From domain to domain", "\n".join(parts) + note(text)


def _shaded(estimate: Mapping[str, Any], most: float, own: bool) -> Cell:
    value = signed(estimate["value"])
    ends = escape(shown(estimate).partition(" ")[2])
    body = (f"<strong>{value}</strong>" if own else value) + (f' <span class="ci">{ends}</span>' if ends else "")
    return Cell(body, kind="single", shade=max(estimate["value"] or 0.0, 0.0) / most if most > 0 else 0.0)
