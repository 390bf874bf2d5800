"""What was found of reuse as tables: sharing of all SAEs, slices, links, the curves over m, the domains of one SAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from saekernels.display.numbers import (
    counted,
    number,
    number_interval,
    percent,
    percent_interval,
    short_sites,
    signed,
    with_interval,
)
from saekernels.display.tables import text_table
from saekernels.eval.report.reading import headed

SHARING = (
    "general: the share of what a domain's latents do (effect on the loss, or activation mass) that the same "
    "latents do in another, a mean over pairs. ceiling: the same between halves of one domain; chance: for "
    "latents dealt out anew. distinct: how many different dictionaries there are in effect, from 1 to the number "
    "of domains. latents: in effect, exp of the entropy over all domains; 90 %: how many do as much, in one "
    "domain -> in all. approximation: the error of the effects against true removals."
)
CURVE = (
    "m: how many latents are allowed, those with most effect in one domain. home: ΔCE there, away: elsewhere, in "
    "nats on documents that the choice did not see. transfer: the gain over no latents that is left away. random: "
    "what is left at home for latents of like frequency. union: the lists of all domains. PCA: directions fitted "
    "in one domain."
)


SLICES = (
    "Each slice beside a random set of as many positions: latents in effect, and general, the share of what the "
    "slice's latents do that the same latents do in all other text. Ratios are of the two: 1 if the slice is like any "
    "other text of its size."
)
LINKS = (
    "Shares of the variance of the later latents that maps from the earlier ones explain. m: how many earlier latents "
    "each is predicted from. home: a domain's own map; away: another domain's; kept: away over home. everything: one "
    "map of all domains; chance: pairs permuted."
)

Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""


def as_text(result: Mapping[str, Any]) -> str:
    """All tables."""
    names = names_of(result)
    one = middle(result)
    tables = [_table(sharing_rows(result), before=facts(result), after=SHARING, left=2)]
    tables += (
        [_table(slice_rows(one), before=f"{names[one['site']]}, by effect", after=SLICES)] if one["slices"] else []
    )
    tables += [_table(link_rows(result), after=LINKS, left=2)] if result["links"] else []
    tables += [_table(curve_rows(result), after=CURVE, left=2)] if one["transfer"] else []
    tables.append(_table(domain_rows(one), before=f"{names[one['site']]}, by effect; {rising(one)}"))
    if one["transfer"]:
        told = f"ΔCE in each domain with the {shown_list(one)['latents']:,} latents that matter most in one"
        tables.append(_table(matrix_rows(one), before=f"{names[one['site']]}: {told}"))
    notes = [f"Note: {note}" for note in result["notes"]]
    return "\n".join([*tables, *notes]) + ("\n" if notes else "")


def _table(table: Table, **options: Any) -> str:
    headings, rows = table
    return text_table(headed(headings, rows), rows, **options)


def names_of(result: Mapping[str, Any]) -> Mapping[str, str]:
    """Site -> how it is shown."""
    rows = result["sites"]
    if "layers" in rows[0]:
        layers = {one["site"]: f"layer {at}" for at, one in enumerate(rows[0]["layers"])}
        return {rows[0]["site"]: rows[0]["site"], **layers}
    return short_sites([row["site"] for row in rows])[1]


def middle(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The SAE whose domains are shown."""
    return cast(Mapping[str, Any], result["sites"][len(result["sites"]) // 2])


def facts(result: Mapping[str, Any]) -> str:
    """Of which model and text it is, and what was left alone."""
    tokens, documents = (sum(result[name].values()) for name in ("tokens", "documents"))
    told = f"{counted(tokens, 'token')} of {counted(documents, 'document')}"
    told = f"{result['model']}: {told} in {counted(len(result['documents']), 'domain')}"
    mask = result["mask"]
    told += f"; the first {mask['leave_first']} of each window left alone" if mask["leave_first"] else ""
    return told + (f"; norms above {mask['leave_norm']:g} medians left alone" if mask["leave_norm"] is not None else "")


def reuse_sentence(result: Mapping[str, Any]) -> str:
    """The headline: how much of a domain's effect is shared, at the middle SAE."""
    row = middle(result)
    found = row["effect"]
    shared, ceiling, chance = (percent(found[name]["value"]) for name in ("general", "ceiling", "chance"))
    grown = [number(one["carriers"]["value"], 0) for one in found["rarefaction"]]
    return (
        f"At {row['site']}, {shared} of what a domain's latents do for the loss the same latents do in another; two "
        f"halves of one domain share {ceiling}, unrelated ones would share {chance}. {grown[0]} latents carry 90 % of "
        f"one domain, {grown[-1]} of all {len(grown)}."
    )


def rising(row: Mapping[str, Any]) -> str:
    """How the number of latents grows with the domains."""
    found = ", ".join(number(one["carriers"]["value"], 0) for one in row["effect"]["rarefaction"])
    return f"latents that carry 90 % of 1, 2, ... domains: {found}"


def shown_list(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The length of lists whose matrix is shown."""
    curve = row["transfer"]["curve"]
    return cast(Mapping[str, Any], curve[len(curve) // 2])


def _share(figure: Mapping[str, Any]) -> str:
    return percent_interval(figure["value"], figure["ci95"])


def _nats(figure: Mapping[str, Any]) -> str:
    return with_interval(figure["value"], figure["ci95"])


def _plain(figure: Mapping[str, Any]) -> str:
    return number_interval(figure["value"], figure["ci95"])


def sharing_rows(result: Mapping[str, Any]) -> Table:
    """One row for each SAE and kind."""
    headings = ["site", "by", "general [95 %]", "ceiling [95 %]", "chance", "distinct", "latents", "90 %",
                "approximation"]  # fmt: skip
    lines = []
    names = names_of(result)
    for row in result["sites"]:
        for one in (row, *row.get("layers", ())):
            for kind in ("effect", "mass"):
                found = one[kind]
                carriers = [number(found["rarefaction"][at]["carriers"]["value"], 0) for at in (0, -1)]
                error = row["removal"]["effect"]["error"]["value"] if one is row and kind == "effect" else None
                lines.append(
                    [names[one["site"]], kind, _share(found["general"]), _share(found["ceiling"]),
                     percent(found["chance"]["value"]), number(found["distinct"]["value"], 2),
                     number(found["effective"]["value"], 0), " -> ".join(carriers), percent(error)]
                )  # fmt: skip
    return headings, lines


def slice_rows(row: Mapping[str, Any]) -> Table:
    """One row for each slice of one SAE, from narrow to broad."""
    headings = ["slice", "latents", "at random", "latents ratio [95 %]", "general", "general at random",
                "general ratio [95 %]"]  # fmt: skip
    lines = []
    for one in row["slices"]["effect"]:
        cells = [one["name"], number(one["effective"]["value"], 0)]
        if "general" in one:
            cells += [number(one["random_effective"]["value"], 0), _plain(one["effective_ratio"])]
            cells += [percent(one["general"]["value"]), percent(one["random_general"]["value"])]
            cells.append(_plain(one["general_ratio"]))
        lines.append([*cells, *["-"] * (len(headings) - len(cells))])
    return headings, lines


def link_rows(result: Mapping[str, Any]) -> Table:
    """One row for each two sites and number of entries."""
    headings = ["from -> to", "m", "home [95 %]", "away [95 %]", "kept [95 %]", "everything", "chance"]
    names = names_of(result)
    lines = []
    for link in result["links"]:
        ends = " -> ".join(names[link[end]] for end in ("upstream", "downstream"))
        for one in link["maps"]:
            ends_of = [percent(one[name]["value"]) for name in ("everything", "chance")]
            lines.append(
                [ends, str(one["entries"]), *(_share(one[name]) for name in ("home", "away", "kept")), *ends_of]
            )
    return headings, lines


def curve_rows(result: Mapping[str, Any]) -> Table:
    """One row for each SAE and length of lists."""
    headings = ["site", "m", "home [95 %]", "away [95 %]", "transfer [95 %]", "random", "union", "whole", "none",
                "PCA home", "PCA away"]  # fmt: skip
    lines = []
    names = names_of(result)
    for row in result["sites"]:
        found = row["transfer"]
        for one in found["curve"]:
            ends = [signed(found[name]["mean"]["value"]) for name in ("whole", "none")]
            directions = [signed(found["pca"][name]["value"]) for name in ("home", "away")]
            lines.append(
                [names[row["site"]], f"{one['latents']:,}", _nats(one["home"]), _nats(one["away"]),
                 _share(one["transfer"]), percent(one["random_share"]["value"]), signed(one["union"]["value"]),
                 *ends, *directions]
            )  # fmt: skip
    return headings, lines


def domain_rows(row: Mapping[str, Any]) -> Table:
    """One row for each domain, of one SAE."""
    headings = ["domain", "clean CE", "general [95 %]", "ceiling", "latents", "90 %"]
    lines = []
    for domain, found in row["effect"]["domains"].items():
        lines.append(
            [domain, number(row["clean_ce"][domain]), _share(found["general"]), percent(found["ceiling"]["value"]),
             number(found["effective"]["value"], 0), number(found["carriers"]["value"], 0)]
        )  # fmt: skip
    return headings, lines


def matrix_rows(row: Mapping[str, Any]) -> Table:
    """ΔCE by domain whose latents are allowed and domain measured, of one SAE and the list of `shown_list`."""
    domains = list(row["clean_ce"])
    cells = [[signed(figure["value"]) for figure in line] for line in shown_list(row)["matrix"]]
    ends = [["(" + name + ")", *(signed(figure["value"]) for figure in row["transfer"][name]["domains"])]
            for name in ("whole", "none")]  # fmt: skip
    return ["latents of", *domains], [*([domain, *line] for domain, line in zip(domains, cells, strict=True)), *ends]
