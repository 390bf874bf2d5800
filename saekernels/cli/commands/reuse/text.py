"""What `saekernels reuse` prints: sharing of all SAEs, the curves over m, and the domains of one SAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saekernels.display.numbers import (
    counted,
    number,
    percent,
    percent_interval,
    short_sites,
    signed,
    with_interval,
)
from saekernels.display.tables import text_table
from saekernels.eval.report.reading import headed

_SHARING = (
    "general: the share of what a domain's latents do (effect on the loss, or activation mass) that the same "
    "latents do in another, a mean over pairs. ceiling: the same between halves of one domain; chance: for "
    "latents dealt out anew. distinct: how many different dictionaries there are in effect, from 1 to the number "
    "of domains. latents: in effect, exp of the entropy over all domains; 90 %: how many do as much, in one "
    "domain -> in all. approximation: the error of the effects against true removals."
)
_CURVE = (
    "m: how many latents are allowed, those with most effect in one domain. home: ΔCE there, away: elsewhere, in "
    "nats on documents that the choice did not see. transfer: the gain over no latents that is left away. random: "
    "what is left at home for latents of like frequency. union: the lists of all domains. PCA: directions fitted "
    "in one domain."
)


def as_text(result: Mapping[str, Any]) -> str:
    """All tables."""
    rows = result["sites"]
    _, names = short_sites([row["site"] for row in rows])
    documents = sum(result["documents"].values())
    head = (
        f"{result['model']}: {counted(sum(result['tokens'].values()), 'token')} of {counted(documents, 'document')} "
        f"in {counted(len(result['documents']), 'domain')}"
    )
    if result["mask"]["leave_first"]:
        head += f"; the first {result['mask']['leave_first']} of each window left alone"
    if result["mask"]["leave_norm"] is not None:
        head += f"; norms above {result['mask']['leave_norm']:g} medians left alone"
    one = rows[len(rows) // 2]
    tables = [_sharing(rows, names, head)]
    tables += [_curve(rows, names)] if one["transfer"] else []
    tables.append(_domains(one, names, list(result["documents"])))
    tables += [_matrix(one, names, list(result["documents"]))] if one["transfer"] else []
    notes = [f"Note: {note}" for note in result["notes"]]
    return "\n".join([*tables, *notes]) + ("\n" if notes else "")


def _share(figure: Mapping[str, Any]) -> str:
    return percent_interval(figure["value"], figure["ci95"])


def _nats(figure: Mapping[str, Any]) -> str:
    return with_interval(figure["value"], figure["ci95"])


def _sharing(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], before: str) -> str:
    headings = ["site", "by", "general [95 %]", "ceiling [95 %]", "chance", "distinct", "latents", "90 %",
                "approximation"]  # fmt: skip
    lines = []
    for row in rows:
        for kind in ("effect", "mass"):
            found = row[kind]
            carriers = [number(found["rarefaction"][at]["carriers"]["value"], 0) for at in (0, -1)]
            error = row["removal"]["effect"]["error"]["value"] if kind == "effect" else None
            lines.append(
                [names[row["site"]], kind, _share(found["general"]), _share(found["ceiling"]),
                 percent(found["chance"]["value"]), number(found["distinct"]["value"], 2),
                 number(found["effective"]["value"], 0), " -> ".join(carriers), percent(error)]
            )  # fmt: skip
    return text_table(headed(headings, lines), lines, before=before, after=_SHARING, left=2)


def _curve(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    headings = ["site", "m", "home [95 %]", "away [95 %]", "transfer [95 %]", "random", "union", "whole", "none",
                "PCA home", "PCA away"]  # fmt: skip
    lines = []
    for row in rows:
        found = row["transfer"]
        for one in found["curve"]:
            ends = [signed(found[name]["mean"]["value"]) for name in ("whole", "none")]
            directions = [signed(found["pca"][name]["value"]) for name in ("home", "away")]
            lines.append(
                [names[row["site"]], f"{one['latents']:,}", _nats(one["home"]), _nats(one["away"]),
                 _share(one["transfer"]), percent(one["random_share"]["value"]), signed(one["union"]["value"]),
                 *ends, *directions]
            )  # fmt: skip
    return text_table(headed(headings, lines), lines, after=_CURVE, left=2)


def _domains(row: Mapping[str, Any], names: Mapping[str, str], domains: Sequence[str]) -> str:
    headings = ["domain", "clean CE", "general [95 %]", "ceiling", "latents", "90 %"]
    lines = []
    for domain in domains:
        found = row["effect"]["domains"][domain]
        lines.append(
            [domain, number(row["clean_ce"][domain]), _share(found["general"]), percent(found["ceiling"]["value"]),
             number(found["effective"]["value"], 0), number(found["carriers"]["value"], 0)]
        )  # fmt: skip
    rising = ", ".join(number(one["carriers"]["value"], 0) for one in row["effect"]["rarefaction"])
    before = f"{names[row['site']]}, by effect; latents that carry 90 % of 1, 2, ... domains: {rising}"
    return text_table(headed(headings, lines), lines, before=before)


def _matrix(row: Mapping[str, Any], names: Mapping[str, str], domains: Sequence[str]) -> str:
    curve = row["transfer"]["curve"]
    one = curve[len(curve) // 2]
    cells = [[signed(figure["value"]) for figure in line] for line in one["matrix"]]
    ends = [["(" + name + ")", *(signed(figure["value"]) for figure in row["transfer"][name]["domains"])]
            for name in ("whole", "none")]  # fmt: skip
    lines = [*([domain, *line] for domain, line in zip(domains, cells, strict=True)), *ends]
    before = f"{names[row['site']]}: ΔCE in each domain with the {one['latents']:,} latents that matter most in one"
    return text_table(["latents of", *domains], lines, before=before)
