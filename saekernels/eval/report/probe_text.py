"""Probes on labelled texts as tables and a sentence a set, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saekernels.display.numbers import counted, number, number_interval, percent_interval, with_interval
from saekernels.display.tables import text_table, wrapped
from saekernels.eval.report.reading import LEVEL, headed

_LEGEND = (
    "AUROC over held-out texts: how often a text of the positive class has the higher score; 0.5 is chance. In: fitted "
    "on texts of all kinds; other: {how}, mean over the values; − act.: minus that of the probe on the activations; "
    "[95 %]: the bootstrap interval over groups of texts that say the same."
)
_HOW = {"rest": "tested on the kind that was left out", "one": "fitted on one kind, tested on the others"}
_ANSWERS_LEGEND = (
    "The model's own answer: log p(answer) - log p(foil), nats; accuracy: how often it is positive; CE: cross-entropy "
    "of the answer and of the foil; own score: AUROC of log p of the continuation that the text has."
)


def print_probes(result: Mapping[str, Any]) -> str:
    """For each set a sentence, a table of its probes, and one of the model's own answer where it was measured."""
    parts = []
    for one in result["sets"]:
        legend = _LEGEND.format(how=_HOW[result["train"]])
        parts.append(wrapped(reading(one)) + "\n")
        rows = [cells for site in one["sites"] for cells in _rows(site, one)]
        parts.append(text_table(headed(_headings(one), rows), rows, left=2, after=legend))
        if one["answers"]:
            cells = [_answer(each) for each in one["answers"]]
            parts.append(text_table(headed(_ANSWERS, cells), cells, after=_ANSWERS_LEGEND))
    return "\n".join(parts)


def reading(one: Mapping[str, Any]) -> str:
    """What a set is, and the mean over sites of each method's AUROC, in distribution and out of it."""
    fitted, tested = ({key: one[side][key] for key in ("positive", "negative", "groups")}
                      for side in ("fitted_on", "tested_on"))  # fmt: skip
    negative = " or ".join(repr(label) for label in one["negative"][:3]) + ", ..." * (len(one["negative"]) > 3)
    text = (
        f"{one['name']}: {one['positive']!r} or {negative}, "
        f"fitted on {counted(fitted['positive'] + fitted['negative'], 'text')} in "
        f"{counted(fitted['groups'], 'group')}, tested on {tested['positive'] + tested['negative']:,} in "
        f"{tested['groups']:,}."
    )
    sites = one["sites"]
    told = []
    for index, method in enumerate(sites[0]["methods"]):
        own = [site["methods"][index] for site in sites]
        figures = [_mean([each["in"]["value"] for each in own])]
        figures += [_mean([each["out"][field]["value"] for each in own]) for field in method["out"]]
        told.append(f"{method['method']} {' / '.join(number(figure) for figure in figures)}")
    kinds = " / ".join(["in distribution", *(f"other {field}" for field in sites[0]["methods"][0]["out"])])
    text += f" AUROC, mean over {counted(len(sites), 'site')}, {kinds}: {', '.join(told)}."
    return " ".join([text, *one["notes"]])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _headings(one: Mapping[str, Any]) -> list[str]:
    fields = list(one["sites"][0]["methods"][0]["out"])
    names = ["in", *(f"other {field}" for field in fields)]
    return ["site", "probe on", *(part for name in names for part in (name + LEVEL, f"{name} − act." + LEVEL))]


def _rows(site: Mapping[str, Any], one: Mapping[str, Any]) -> Iterator[list[str]]:
    for number_of, method in enumerate(site["methods"]):
        cells = [site["site"] if not number_of else "", method["method"]]
        for figure in (method["in"], *method["out"].values()):
            cells.append(number_interval(figure["value"], figure["ci95"]))
            cells.append(with_interval(figure["minus_dense"], figure["minus_dense_ci95"]) if number_of else "-")
        yield cells


_ANSWERS = (
    "spliced", "logit difference" + LEVEL, "accuracy" + LEVEL, "CE answer", "CE foil", "own score" + LEVEL,
    "− clean" + LEVEL,
)  # fmt: skip


def _answer(one: Mapping[str, Any]) -> list[str]:
    own = one["own_score_auroc"]
    name = {"clean": "(none)", "all": "all together"}.get(one["splice"], one["splice"])
    return [
        name,
        with_interval(one["logit_difference"]["value"], one["logit_difference"]["ci95"]),
        percent_interval(one["accuracy"]["value"], one["accuracy"]["ci95"]),
        number(one["ce_answer"]["value"]),
        number(one["ce_foil"]["value"]),
        number_interval(own["value"], own["ci95"]),
        with_interval(own.get("minus_clean"), own.get("minus_clean_ci95")),
    ]
