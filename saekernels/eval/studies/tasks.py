"""Narrow tasks: prompts with a right and a wrong continuation, and what a splice leaves of the difference between them.

Built in: indirect-object identification (Wang et al. 2023, arXiv 2211.00593) with variants that break its usual
heuristics, and "a question that begins with a wh-word ends in ?". More come from YAML files (docs/how-to/tasks.md).
"""

from __future__ import annotations

import itertools
import os
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saekernels.errors import InputError, first_line, missing_extra

_MOST_PROMPTS = 200


@dataclass(frozen=True)
class Prompt:
    """A text and two continuations of it."""

    text: str
    answer: str
    foil: str


@dataclass(frozen=True)
class Task:
    """A name and its prompts."""

    name: str
    prompts: tuple[Prompt, ...]


_NAMES = ("Mary", "John", "Tom", "James", "Dan", "Martin", "Amy", "Sarah")
_PLACES = ("store", "garden", "school", "station")
_THINGS = ("book", "letter", "key", "drink")
_IOI = {
    "ioi": "When {A} and {B} went to the {place}, {B} gave a {thing} to",
    "ioi (names in the other order)": "When {B} and {A} went to the {place}, {B} gave a {thing} to",
    "ioi (receiver named twice)": "When {A} and {B} went to the {place}, {A} was late. Then {B} gave a {thing} to",
    "ioi (a third name)": "When {A} and {B} went to the {place}, {C} was there. Then {B} gave a {thing} to",
    "ioi (giver named thrice)": "When {B} and {A} went to the {place}, {B} was late. Then {B} gave a {thing} to",
}
_QUESTIONS = (
    "What is the name of the {noun}", "Where is the {noun}", "Who wrote the {noun}", "When was the {noun} made",
    "Why is the {noun} so small", "How does the {noun} work", "Which {noun} is the best",
)  # fmt: skip
_STATEMENTS = (
    "This is the name of the {noun}", "Here is the {noun}", "They wrote the {noun}", "Then the {noun} was made",
    "That is why the {noun} is so small", "This is how the {noun} works", "That {noun} is the best",
)  # fmt: skip
_NOUNS = ("file", "book", "house", "function", "letter", "table", "river", "server")


def built_in() -> dict[str, list[Task]]:
    """Name -> the task with its variants."""
    fillings = [
        {"A": a, "B": b, "C": c, "place": place, "thing": thing}
        for a, b, c in itertools.permutations(_NAMES, 3)
        for place, thing in ((_PLACES[len(a) % 4], _THINGS[len(b + c) % 4]),)
    ]
    ioi = [_make(name, [text], " {A}", " {B}", fillings) for name, text in _IOI.items()]
    nouns = [{"noun": noun} for noun in _NOUNS]
    questions = [
        _make("wh-question ends in ?", _QUESTIONS, "?", ".", nouns),
        _make("statement ends in . (control)", _STATEMENTS, ".", "?", nouns),
    ]
    return {"ioi": ioi, "wh_question": questions}


def load_tasks(names: Sequence[str | os.PathLike[str]]) -> list[Task]:
    """Tasks by built-in name or from YAML files. Raises InputError for anything else."""
    known = built_in()
    made: list[Task] = []
    for name in [os.fspath(name) for name in names]:
        if name in known:
            made += known[name]
        elif name.lower().endswith((".yaml", ".yml")):
            made += list(_read(Path(name)))
        else:
            raise InputError(f"tasks: {name!r} is neither of {', '.join(known)} nor a .yaml file")
    return made


def _make(name: str, templates: Sequence[str], answer: str, foil: str, fillings: Sequence[Mapping[str, str]]) -> Task:
    prompts = [
        Prompt(template.format(**filling), answer.format(**filling), foil.format(**filling))
        for filling in fillings
        for template in templates
    ]
    if len(prompts) > _MOST_PROMPTS:
        keep = np.random.default_rng(0).permutation(len(prompts))[:_MOST_PROMPTS]
        prompts = [prompts[i] for i in sorted(keep)]
    return Task(name, tuple(prompts))


def _read(path: Path) -> Iterator[Task]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing_extra("pyyaml", f"reading {path}") from error
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"tasks: cannot read {path}: {first_line(error)}") from error
    if data == []:
        raise InputError(f"tasks: {path} holds no task")
    for number, entry in enumerate(data if isinstance(data, list) else [data], 1):
        yield _parse(entry, f"{path}, task {number}")


def _parse(entry: Any, where: str) -> Task:
    if not isinstance(entry, Mapping):
        raise InputError(f"tasks: {where} is {type(entry).__name__}, need a mapping with name, template, answer, foil")
    missing = [key for key in ("name", "template", "answer", "foil") if key not in entry]
    unknown = sorted(set(map(str, entry)) - {"name", "template", "answer", "foil", "fill", "product"})
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has an unknown key {unknown[0]!r}"
        raise InputError(f"tasks: {where} {what}; its keys: name, template, answer, foil, and fill or product")
    fillings = _fillings(entry, where)
    templates = entry["template"] if isinstance(entry["template"], list) else [entry["template"]]
    texts = [*templates, entry["answer"], entry["foil"]]
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"tasks: {where}: {text!r:.40} is {type(text).__name__}, need text in quotes")
        try:
            slots = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
        except ValueError as error:
            raise InputError(f"tasks: {where}: {text!r:.60}: {error}") from error
        absent = sorted(slots - set(fillings[0]))
        if absent:
            raise InputError(f"tasks: {where}: {text!r:.60} has {{{absent[0]}}}, which fill or product does not give")
    task = _make(str(entry["name"]), templates, entry["answer"], entry["foil"], fillings)
    if any(p.answer == p.foil or not p.answer or not p.foil for p in task.prompts):
        raise InputError(f"tasks: {where}: an answer is empty or the same as its foil")
    return task


def _fillings(entry: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    fill, product = entry.get("fill"), entry.get("product")
    if fill is not None and product is not None:
        raise InputError(f"tasks: {where} has both fill and product; need one")
    if product is not None:
        if not isinstance(product, Mapping) or not all(isinstance(v, list) and v for v in product.values()):
            raise InputError(f"tasks: {where}: product needs a list for each name")
        rows = [dict(zip(product, values, strict=True)) for values in itertools.product(*product.values())]
        # The same word in two places is another task.
        rows = [row for row in rows if len(set(map(str, row.values()))) == len(row)]
    else:
        rows = [{}] if fill is None else fill
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"tasks: {where}: fill needs a list of mappings")
    if len({tuple(sorted(map(str, row))) for row in rows}) > 1:
        raise InputError(f"tasks: {where}: every entry of fill needs the same names")
    return [{str(key): str(value) for key, value in row.items()} for row in rows]
