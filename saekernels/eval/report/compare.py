"""Two reports on the same documents, compared document by document."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from saekernels.display.numbers import Interval, counted, number, signed, with_interval
from saekernels.display.tables import text_table
from saekernels.errors import InputError, first_line
from saekernels.eval.report.reading import ABBREVIATIONS, headed
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.files.checked import is_column, read_json

_ALL = "all"
_LEGEND = "\n".join(f"{name}: {ABBREVIATIONS[name]}." for name in ("CE", "ΔCE", "nats", "[95 %]", "KL"))


@dataclass(frozen=True)
class Difference:
    """B minus A of one target, nats per token: ΔCE of each, their difference and its paired 95 % interval; KL too."""

    target: str
    delta_a: float
    delta_b: float
    difference: float
    ci95: Interval | None
    kl_difference: float
    kl_ci95: Interval | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found over the documents that both reports hold with the same tokens."""

    names: tuple[str, str]
    documents: int
    tokens: int
    clean_difference: float
    rows: list[Difference]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "names": list(self.names), "rows": [vars(row) for row in self.rows]}


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A report written by `--json`. Raises InputError for anything else, and for one without figures per document."""
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"compare: cannot read {path}: {first_line(error)}") from error
    if not isinstance(data, dict) or data.get("schema") != 1:
        raise InputError(f"compare: {path} is no report of saekernels eval (schema 1)")
    if not data.get("documents_table"):
        raise InputError(f"compare: {path} has no figures per document; make it again with this version")
    if not _whole(data["documents_table"]):
        raise InputError(
            f"compare: {path} is damaged: columns of its documents_table are missing, of unlike lengths or no numbers"
        )
    return data


def _whole(table: Any) -> bool:
    try:
        figures = [table["clean"], *table["spliced"].values(), *table["kl"].values()]
        typed = is_column(table["ids"], str) and is_column(table["tokens"], int)
        typed = typed and all(is_column(one, float, optional=True) for one in figures)
        lengths = {len(one) for one in (table["ids"], table["tokens"], *figures)}
        return typed and len(lengths) == 1 and set(table["spliced"]) == set(table["kl"])
    except (KeyError, TypeError, AttributeError):
        return False


def compare(
    a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str], samples: int = 2000, seed: int = 0
) -> Comparison:
    """Paired differences B - A of every target that both have.

    A target is matched by its name; where each report has a single site, those are matched, whatever their names. All
    sites together are matched though they be others; the row's name and a note then say so. Sums are over documents
    in both with the same number of tokens; both see the same resampled documents.

    Raises InputError if no document or no target is in both.
    """
    tables = (a["documents_table"], b["documents_table"])
    keys = [list(zip(table["ids"], table["tokens"], strict=True)) for table in tables]
    place = {key: index for index, key in enumerate(keys[1])}
    pairs = [(mine, place[key]) for mine, key in enumerate(keys[0]) if key in place]
    if not pairs:
        raise InputError("compare: the reports have no document in common (with the same windows)")
    rows = [np.asarray(column) for column in zip(*pairs, strict=True)]
    tokens = np.asarray(tables[0]["tokens"], dtype=np.float64)[rows[0]]
    matched = _matched(a, b)
    if not matched:
        raise InputError(f"compare: no target in common: {_targets(a)} and {_targets(b)}")

    together = [{name.partition("#")[0] for name in _targets(report) if name != _ALL} for report in (a, b)]
    others = _other_sites(*together)

    def column(side: int, values: list[float | None]) -> np.ndarray:
        return np.asarray([np.nan if v is None else v for v in values])[rows[side]] * tokens

    clean = [column(side, table["clean"]) for side, table in enumerate(tables)]
    made = []
    for first, second in matched:
        deltas = [column(i, tables[i]["spliced"][name]) - clean[i] for i, name in enumerate((first, second))]
        kls = [column(i, tables[i]["kl"][name]) for i, name in enumerate((first, second))]
        name = first if first == second else f"{first} / {second}"
        if name == _ALL and others:
            name = f"{_ALL} ({len(together[0])} / {len(together[1])} sites)"
        made.append(_difference(name, tokens, deltas, kls, samples, seed))
    notes = [others] if others and any(first == _ALL for first, _ in matched) else []
    left_out = [len(keys[i]) - len(pairs) for i in (0, 1)]
    if any(left_out):
        notes.append(f"Left out: {left_out[0]} documents of A and {left_out[1]} of B that the other has not whole.")
    clean_difference = float((clean[1].sum() - clean[0].sum()) / tokens.sum())
    if abs(clean_difference) > 1e-6:
        notes.append(f"The clean models differ by {clean_difference:+.6f} nats per token: not the same model or dtype.")
    return Comparison(names, len(pairs), int(tokens.sum()), clean_difference, made, notes)


def _other_sites(a: set[str], b: set[str]) -> str:
    """What to know of all sites together where they are not the same ones; "" where they are."""
    if a == b:
        return ""
    lone = "; ".join(
        f"{side} alone has {', '.join(sorted(own)) if len(own) < 4 else counted(len(own), 'site')}"
        for side, own in (("A", a - b), ("B", b - a))
        if own
    )
    return f"All sites together are others: {lone}. Their difference is that of the sites, too."


def _targets(report: Mapping[str, Any]) -> list[str]:
    return list(report["documents_table"]["spliced"])


def _matched(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str]]:
    mine, theirs = _targets(a), _targets(b)
    same = [(name, name) for name in mine if name in theirs]
    return same or ([(mine[0], theirs[0])] if len(mine) == len(theirs) == 1 else [])


def _difference(
    target: str, tokens: np.ndarray, deltas: list[np.ndarray], kls: list[np.ndarray], samples: int, seed: int
) -> Difference:
    table = np.column_stack([tokens, *deltas, *kls])
    total = table.sum(0)
    delta_a, delta_b, kl_a, kl_b = (float(value / total[0]) for value in total[1:])
    interval = kl_interval = None
    if samples and len(table) > 1:
        drawn = resample_totals(table, samples, seed)
        interval = percentiles((drawn[:, 2] - drawn[:, 1]) / drawn[:, 0])
        kl_interval = percentiles((drawn[:, 4] - drawn[:, 3]) / drawn[:, 0])
    return Difference(target, delta_a, delta_b, delta_b - delta_a, interval, kl_b - kl_a, kl_interval)


def as_text(found: Comparison) -> str:
    """The comparison for a terminal."""
    headings = ("target", "ΔCE of A", "ΔCE of B", "B - A", "KL, B - A")
    rows = [
        [
            row.target,
            number(row.delta_a),
            number(row.delta_b),
            with_interval(row.difference, row.ci95),
            with_interval(row.kl_difference, row.kl_ci95),
        ]
        for row in found.rows
    ]
    size = f"{counted(found.tokens, 'token')} of {counted(found.documents, 'document')} in both"
    before = f"A: {found.names[0]}\nB: {found.names[1]}\n{size}"
    after = "\n".join([*map(_verdict, found.rows), *(f"Note: {note}" for note in found.notes), "", _LEGEND])
    return text_table(headed(headings, rows), rows, before=before, after=after)


def _verdict(row: Difference) -> str:
    if row.ci95 is None:
        return f"{row.target}: no interval."
    low, high = row.ci95
    if low <= 0 <= high:
        return f"{row.target}: no difference can be told apart from none."
    return f"{row.target}: {'A' if low > 0 else 'B'} costs less, by {signed(abs(row.difference)).lstrip('+')} nats."
