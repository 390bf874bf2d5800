"""What `saekernels eval --clt` and the like print: runs, layers, what was fitted elsewhere, and what it all costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saekernels.display.numbers import (
    counted,
    number,
    number_interval,
    percent_interval,
    readable,
    short_sites,
    with_interval,
)
from saekernels.display.tables import text_table
from saekernels.eval.report.reading import headed

_RUNS = (
    "ΔCE: cross-entropy of the replaced model minus that of the clean one, nats per token; more than {first}: the same "
    "minus that of the {first} run, paired. top-1: both models' first choices are one. unsure: the same over the "
    "{unsure:,} tokens that the clean model gets right with less than {below:.0%}."
)
_COMPOUNDING = " Compounding, joint minus teacher_forced: {compounding}."
_LAYERS = (
    "FVU: of what is written, against {target} at the same input. drift: of what is written in the joint run, against "
    "what the clean model writes. L0: active latents per token; used: latents that were active at all, joint."
)
_ELSEWHERE = (
    "RUN@DOMAIN: maps fitted on that domain alone; for joint, only latents that are active somewhere in its fitted "
    "half, of so many positions (fitted on). Its like: fitted on everything, or with all latents. price: what having "
    "seen that domain alone costs elsewhere, paired."
)
_CLEAN_LAYERS = (
    "FVU: of what is written, against the clean model. L0: active latents per token; used: latents that were active "
    "at all{shared}."
)
_COSTS = "flops: per token, encoders dense, decoders by active latents. Over all layers {latents} latents are active "
_COSTS += "per token, {pairs} pairs of a latent and a layer that it writes at."


def as_text(result: Mapping[str, Any]) -> str:
    """All tables."""
    documents = result["documents"]
    head = (
        f"{result['model']}: {counted(len(result['layers']), 'layer')} replaced {_together(result)}; "
        f"{counted(result['tokens'], 'token')} of {counted(documents['measured'], 'document')} measured, "
        f"{counted(documents['fitted'], 'document')} fitted on; clean CE {number(result['clean_ce'])}"
    )
    tables = [_runs(result, head), _layers(result)]
    tables += [_domains(rows) for rows in [result["strata"].get("domain", [])] if len(rows) > 1]
    found = result["extrapolation"]
    if found:
        tables += [_elsewhere(found["rows"])] if found["rows"] else []
        tables += [_transfer(one) for one in found["transfer"] if len(one["from"]) > 2]
    tables.append(_costs(result))
    notes = [f"Note: {note}" for note in result["notes"]]
    return "\n".join([*tables, *notes]) + "\n" * bool(notes)


def _runs(result: Mapping[str, Any], head: str) -> str:
    first = result["runs"][0]["run"]
    headings = ["run", "ΔCE [95 %]", "KL [95 %]", "top-1 [95 %]", "unsure [95 %]", f"more than {first} [95 %]"]
    rows = [
        [
            row["run"],
            _signed(row["delta_ce"]),
            number_interval(row["kl"]["value"], row["kl"]["ci95"]),
            percent_interval(row["top1"]["value"], row["top1"]["ci95"]),
            percent_interval(row["top1_unsure"]["value"], row["top1_unsure"]["ci95"]),
            _signed(row[f"over_{first}"]) if f"over_{first}" in row else "-",
        ]
        for row in result["runs"]
    ]
    after = _RUNS.format(first=first, unsure=result["unsure_tokens"], below=result["unsure_below"])
    if result["causal"]:
        after += _COMPOUNDING.format(compounding=_signed(result["compounding"]))
    return text_table(headed(headings, rows), rows, before=head, after=after)


def _layers(result: Mapping[str, Any]) -> str:
    layers = result["layers"]
    _, names = short_sites([row["site"] for row in layers])
    if result["causal"]:
        headings = ["layer", "FVU joint", "teacher-forced", "drift", "L0 joint", "teacher-forced", "used", "of"]
        fvu, l0, used = ["fvu_joint", "fvu_teacher_forced", "fvu_drift"], ["l0_joint", "l0_teacher_forced"], "joint"
        replaced = "what was there" if result["replacement"].endswith("crosscoder") else "the MLP"
        after = _LAYERS.format(target=replaced)
    else:
        headings, used = ["layer", "FVU", "L0", "used", "of"], "teacher_forced"
        fvu, l0 = ["fvu_teacher_forced"], ["l0_teacher_forced"]
        shared = f", at any layer {result['used']:,}" if "used" in result else ""
        after = _CLEAN_LAYERS.format(shared=shared)
    rows = [
        [
            names[row["site"]],
            *(number(row[name]) for name in fvu),
            *(number(row[name], 1) for name in l0),
            f"{row[f'used_{used}']:,}",
            f"{row['latents']:,}",
        ]
        for row in layers
    ]
    return text_table(headings, rows, after=after)


def _domains(rows: Sequence[Mapping[str, Any]]) -> str:
    wanted = ("joint", "teacher_forced", "zero", "affine", "affine_shared", "beside")
    shown = [run for run in wanted if run in rows[0]["runs"]]
    headings = ["domain", "tokens", *(f"{run} ΔCE [95 %]" for run in shown)]
    made = [
        [row["name"], f"{row['tokens']:,}", *(_signed(row["runs"][run]["delta_ce"]) for run in shown)] for row in rows
    ]
    return text_table(headed(headings, made), made)


def _elsewhere(rows: Sequence[Mapping[str, Any]]) -> str:
    headings = ["run", "fitted on", "ΔCE in its domain [95 %]", "elsewhere [95 %]", "of its like, there [95 %]"]
    headings += ["elsewhere [95 %]", "price [95 %]"]
    shown = ("inside", "outside", "whole_inside", "whole_outside", "price")
    made = [[row["run"], f"{row['positions']:,}", *(_signed(row[figure]) for figure in shown)] for row in rows]
    return text_table(headed(headings, made), made, after=_ELSEWHERE)


def _transfer(found: Mapping[str, Any]) -> str:
    headings = [f"{found['run']} from", *(f"on {name} [95 %]" for name in found["on"])]
    rows = [
        [source or "everything", *map(_signed, figures)]
        for source, figures in zip(found["from"], found["delta_ce"], strict=True)
    ]
    return text_table(headed(headings, rows), rows)


def _costs(result: Mapping[str, Any]) -> str:
    rows = [
        [name, readable(row["parameters"]), readable(row["flops_per_token"])]
        for name, row in result["accounting"].items()
    ]
    l0 = result["l0"]["joint" if result["causal"] else "teacher_forced"]
    after = _COSTS.format(latents=number(l0["latents"], 1), pairs=number(l0["pairs"], 1))
    return text_table(["what", "parameters", "flops"], rows, after=after)


def _together(result: Mapping[str, Any]) -> str:
    if result["causal"]:
        return "together"
    return f"by a {result['replacement']}, codes of clean passes"


def _signed(estimate: Mapping[str, Any]) -> str:
    return with_interval(estimate["value"], estimate["ci95"])
