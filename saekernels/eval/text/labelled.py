"""Texts with a label: what a probe is fitted on and tested by, read from files of records."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saekernels.errors import InputError
from saekernels.eval.text.records import look_up, read_records, stem

SHIFTS = ("template", "language", "domain")
_COMPLETION = ("prompt", "answer", "foil")
_SHOWN = 5


@dataclass(frozen=True)
class Completion:
    """The text as a prompt with a continuation: the right one (the answer) or a wrong one (the foil)."""

    prompt: str
    answer: str
    foil: str
    is_answer: bool


@dataclass(frozen=True)
class LabelledText:
    """group: texts that say the same, none of which may be tested where another was fitted on.

    fields: by name, the value that says from which distribution the text is, such as {"language": "de"}.
    """

    text: str
    label: str
    group: str
    fields: Mapping[str, str] = field(default_factory=dict)
    completion: Completion | None = None
    where: str = ""


@dataclass(frozen=True)
class LabelledSet:
    """texts: of two classes, those with the label `positive` and all others; shifts: fields that name distributions."""

    name: str
    texts: tuple[LabelledText, ...]
    positive: str
    shifts: tuple[str, ...]


@dataclass(frozen=True)
class LabelFields:
    """Which fields of a record hold its text, label and group, and which name a distribution.

    group None: "group" where a record has it, else each text is a group of its own. shifts None: those of "template",
    "language" and "domain" that all records have and that differ between them.
    """

    text: str = "text"
    label: str = "label"
    group: str | None = None
    shifts: tuple[str, ...] | None = None


def read_labelled(path: str | os.PathLike[str], fields: LabelFields, positive: str | None = None) -> LabelledSet:
    """The labelled texts of one file: .jsonl, .json (also .gz), .csv, .tsv or .parquet.

    positive: the label of the positive class; of two labels, the last by alphabet ("true", "1", "yes").

    Raises InputError for a file or a record that cannot be read, labels of fewer than two kinds, more than two without
    `positive`, or a field of `fields.shifts` that has one value alone.
    """
    try:
        records = [(where, one) for where, one in read_records(Path(path)) if one != ""]
    except InputError as error:
        raise InputError(f"labels: {str(error).removeprefix('data: ')}") from error
    if not records:
        raise InputError(f"labels: {path} holds no text")
    shifts = fields.shifts
    if shifts is None:
        shifts = tuple(name for name in SHIFTS if all(_has(one, name) for _, one in records))
    texts = tuple(_labelled(one, fields, shifts, where) for where, one in records)
    values = {name: {text.fields[name] for text in texts} for name in shifts}
    for name in fields.shifts or ():
        if len(values[name]) < 2:
            raise InputError(
                f"labels: {path}: the field {name!r} (--by) has one value alone, {values[name].pop()!r:.40}"
            )
    kept = tuple(name for name in shifts if len(values[name]) > 1)
    return LabelledSet(stem(Path(path)), texts, _positive(texts, fields, positive, path), kept)


def _positive(
    texts: Sequence[LabelledText], fields: LabelFields, positive: str | None, path: str | os.PathLike[str]
) -> str:
    counts = Counter(text.label for text in texts)
    found = ", ".join(repr(one)[:40] for one in sorted(counts)[:_SHOWN]) + ", ..." * (len(counts) > _SHOWN)
    where = f"labels: {path}: the field {fields.label!r}"
    if len(counts) == 1:
        raise InputError(f"{where} has one value alone, {found}; need two classes")
    if positive is None and len(counts) > 2:
        raise InputError(f"{where} has {len(counts)} values, {found}; say which is positive (--positive)")
    if positive is not None and positive not in counts:
        raise InputError(f"{where} has no value {positive!r:.40} (--positive); it has {found}")
    return max(counts) if positive is None else positive


def _labelled(record: Any, fields: LabelFields, shifts: Sequence[str], where: str) -> LabelledText:
    if not isinstance(record, Mapping):
        raise InputError(f"labels: {where} is a {type(record).__name__}; need an object with a text and a label")
    text = record_text(record, fields.text, where)
    if fields.group is not None or _has(record, "group"):
        group = _told(record, fields.group or "group", "--group-field", where)
    else:
        group = where
    found = {name: _told(record, name, "--by", where) for name in shifts}
    label = _told(record, fields.label, "--label-field", where)
    return LabelledText(text, label, group, found, _completion(record, text, where), where)


def record_text(record: Mapping[str, Any], name: str, where: str) -> str:
    """The text in the field `name`. Raises InputError where there is none, or one that is not valid Unicode."""
    text = look_up(record, name)[1]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"labels: {where} has no text in the field {name!r}; its fields: {_names(record)}")
    if text.encode("utf-8", "replace").decode("utf-8") != text:
        raise InputError(f"labels: {where} is not valid Unicode")
    return text


def _told(record: Mapping[str, Any], name: str, option: str, where: str) -> str:
    """The value of the field that an option names, as text: true and 1 as they are written in JSON."""
    value = look_up(record, name)[1]
    if value is None or value == "" or isinstance(value, list | dict):
        what = "nothing" if value is None or value == "" else f"a {type(value).__name__}"
        raise InputError(f"labels: {where} has {what} in the field {name!r} ({option}); its fields: {_names(record)}")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _completion(record: Mapping[str, Any], text: str, where: str) -> Completion | None:
    parts = [look_up(record, name)[1] for name in _COMPLETION]
    if parts == [None] * 3:
        return None
    for name, part in zip(_COMPLETION, parts, strict=True):
        if not isinstance(part, str) or not part:
            raise InputError(f"labels: {where} has no text in the field {name!r}, but others of {_COMPLETION}")
    prompt, answer, foil = map(str, parts)
    owns = [text.startswith(prompt + one) for one in (answer, foil)]
    if sum(owns) != 1:
        raise InputError(f"labels: {where}: the text must begin with its prompt and either the answer or the foil")
    return Completion(prompt, answer, foil, owns[0])


def _has(record: Any, name: str) -> bool:
    return isinstance(record, Mapping) and look_up(record, name)[1] not in (None, "")


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, record)) or "none"
