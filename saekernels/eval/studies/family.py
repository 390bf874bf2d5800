"""A family of models measured on the same tokens: what a loss is worth in parameters and in training compute.

Effective compute of a spliced model (Gao et al. 2024): the smaller model of the same family that predicts as well. Read
off by monotone interpolation within the family; parametric laws only by name, because they disagree.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from saekernels.errors import InputError, first_line
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.files.checked import is_column, is_count, read_json, write_whole

SCHEMA = "saekernels-family-1"
_ROUNDING = 1e-6
KAPLAN_ALPHA = 0.050
CHINCHILLA = (1.69, 0.1535)
LAW_WARNING = (
    "Parametric laws hold for the tokenizer and the text that they were fitted on, and differ by up to three times "
    "from each other; they are given for comparison with other work, not as a measurement."
)


@dataclass(frozen=True)
class Member:
    """One model: parameters, training tokens (None if unknown), and its mean CE per document, in nats."""

    name: str
    parameters: int
    non_embedding: int
    train_tokens: int | None
    loss: float
    documents: list[float]

    @property
    def compute(self) -> float | None:
        """Training FLOPs, 6 N D with all parameters (Kaplan et al. 2020)."""
        return None if self.train_tokens is None else 6.0 * self.parameters * self.train_tokens


@dataclass(frozen=True)
class Family:
    """Members from small to large, on the same documents: ids (digests of texts) and counted tokens of each."""

    members: list[Member]
    ids: list[str]
    tokens: list[int]
    context: int
    vocabulary: int

    def to_json(self) -> str:
        """The table as a JSON document, its format first."""
        return json.dumps({"format": SCHEMA, **asdict(self)}, indent=1) + "\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the table, whole or not at all."""
        write_whole(path, self.to_json())


@dataclass(frozen=True)
class Equivalent:
    """What a loss is worth in a family.

    parameters, compute: of the model with that loss, by interpolation; share: of the largest member's compute;
    outside: "" or why there is no number ("worse than the smallest member", "better than the largest").
    """

    loss: float
    parameters: float | None
    parameters_ci95: tuple[float, float] | None
    compute: float | None
    share: float | None
    share_ci95: tuple[float, float] | None
    outside: str = ""


def read_family(path: str | os.PathLike[str]) -> Family:
    """The table that `saekernels scaling fit` wrote. Raises InputError for anything else."""
    try:
        data = read_json(path)
        if not isinstance(data, dict) or data.pop("format", None) != SCHEMA:
            raise ValueError(f"its format is not {SCHEMA}")
        members = [Member(**member) for member in data.pop("members")]
        family = Family(members, **data)
        _check(family)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"family: cannot read {path}: {first_line(error)}") from error
    return family


def _check(family: Family) -> None:
    """Raise ValueError for fields of the wrong kind, and for models without a loss for each document."""
    whole = all(is_count(value) for value in (family.context, family.vocabulary))
    if not whole or not is_column(family.ids, str) or not is_column(family.tokens, int):
        raise ValueError("context, vocabulary, ids and tokens must be whole numbers, texts and whole numbers")
    for member in family.members:
        trained = 1 if member.train_tokens is None else member.train_tokens
        sizes = (member.parameters, member.non_embedding, trained)
        if not isinstance(member.name, str) or not all(is_count(size) and size > 0 for size in sizes):
            raise ValueError(f"a member's name or sizes are wrong: {member.name!r:.40}")
        losses = [member.loss, *member.documents] if isinstance(member.documents, list) else None
        if losses is None or not is_column(losses, float) or min(losses) < 0:
            raise ValueError(f"the losses of {member.name!r:.40} must be finite numbers of at least 0")
    lengths = {len(member.documents) for member in family.members} | {len(family.tokens)}
    if len(family.members) < 2 or lengths != {len(family.ids)}:
        raise ValueError("it needs at least two models with a loss for each document")


def make_family(members: Sequence[Member], ids: Sequence[str], tokens: Sequence[int], context: int, v: int) -> Family:
    """The table, from small to large. Raises InputError for fewer than two models."""
    if len(members) < 2:
        raise InputError(f"family: a curve needs at least two models, got {len(members)}")
    ordered = sorted(members, key=lambda member: (member.compute or 0.0, member.parameters))
    return Family(ordered, list(ids), list(tokens), context, v)


def equivalents(
    family: Family,
    spliced: Mapping[str, Sequence[float]],
    ids: Sequence[str],
    counts: Sequence[int],
    samples: int,
    seed: int,
) -> tuple[dict[str, Equivalent], list[str]]:
    """What each target's loss is worth, with intervals; and notes.

    spliced: target -> mean CE per document of `ids`, which have `counts` tokens. Only documents count that the family
    was measured on whole, as here; all losses, the family's and the target's, see the same resampled documents.

    Raises InputError if no document is in both.
    """
    place = {key: index for index, key in enumerate(zip(ids, counts, strict=True))}
    keys = zip(family.ids, family.tokens, strict=True)
    shared = [(mine, place[key]) for mine, key in enumerate(keys) if key in place]
    if not shared:
        raise InputError("family: it was measured on other documents: none of the evaluated ones is in its table")
    mine, theirs = (np.asarray(column) for column in zip(*shared, strict=True))
    tokens = np.asarray(family.tokens, dtype=np.float64)[mine]
    curves = [np.asarray(member.documents, dtype=np.float64)[mine] * tokens for member in family.members]
    values = {name: np.asarray(means, dtype=np.float64)[theirs] * tokens for name, means in spliced.items()}
    table = np.column_stack([tokens, *curves, *values.values()])
    made = {}
    point = _means(table.sum(0, keepdims=True))
    spread = _means(resample_totals(table, samples, (seed, 77))) if samples and len(table) > 1 else None
    count = len(family.members)
    for index, name in enumerate(values, count):
        made[name] = _equivalent(family, point, spread, index)
    notes = []
    if len(shared) < len(ids):
        notes.append(f"Effective compute is read from {len(shared)} of {len(ids)} documents: the family's.")
    if (np.diff(point[0, :count]) > 0).any():
        notes.append("The family's losses do not fall with compute everywhere; they are made monotone (isotonic).")
    return made, notes


def _means(totals: np.ndarray) -> np.ndarray:
    return totals[:, 1:] / totals[:, :1]


def _equivalent(family: Family, point: np.ndarray, spread: np.ndarray | None, index: int) -> Equivalent:
    count = len(family.members)
    sizes = np.array([float(member.parameters) for member in family.members])
    known = [member.compute for member in family.members]
    compute = np.array(known, dtype=np.float64) if None not in known else None
    loss = float(point[0, index])
    losses = monotone(point[0, :count])
    outside = "worse than the smallest member" if loss > losses[0] + _ROUNDING else ""
    outside = "better than the largest member" if loss < losses[-1] - _ROUNDING else outside

    def read(scale: np.ndarray) -> tuple[float | None, tuple[float, float] | None]:
        value = None if outside else interpolate(losses, scale, loss)
        if spread is None or outside:
            return value, None
        draws = np.array([interpolate(monotone(row[:count]), scale, row[index]) for row in spread])
        return value, percentiles(draws)

    parameters, parameters_ci = read(sizes)
    if compute is None:
        return Equivalent(loss, parameters, parameters_ci, None, None, None, outside)
    flops, flops_ci = read(compute)
    largest = compute[-1]
    share_ci = None if flops_ci is None else (flops_ci[0] / largest, flops_ci[1] / largest)
    share = None if flops is None else flops / largest
    return Equivalent(loss, parameters, parameters_ci, flops, share, share_ci, outside)


def monotone(losses: np.ndarray) -> np.ndarray:
    """The nearest sequence that does not rise (pool adjacent violators, equal weights)."""
    blocks: list[list[float]] = []
    for value in losses:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            high, low = blocks.pop(), blocks.pop()
            weight = high[1] + low[1]
            blocks.append([(high[0] * high[1] + low[0] * low[1]) / weight, weight])
    return np.concatenate([np.full(int(weight), value) for value, weight in blocks])


def interpolate(losses: np.ndarray, scale: np.ndarray, loss: float) -> float:
    """The scale at which a falling curve has this loss: linear in log scale; its ends outside of them.

    Where the curve is flat, the smallest scale with that loss.
    """
    falling, first = np.unique(losses[::-1], return_index=True)
    at = len(losses) - 1 - first
    smallest = np.array([np.flatnonzero(losses == losses[i])[0] for i in at])
    return float(np.exp(np.interp(loss, falling, np.log(scale[smallest]))))


def parametric_share(clean: float, spliced: float) -> dict[str, dict[str, Any]]:
    """Share of training compute by the laws of Kaplan et al. 2020 and Hoffmann et al. 2022, with their constants.

    Kaplan: C/C0 = (L0/L)^(1/0.050). Chinchilla-form: ((L0 - E)/(L - E))^(1/0.1535), E = 1.69 nats. None where a law
    says nothing (a loss at or below its irreducible part).
    """
    floor, exponent = CHINCHILLA
    kaplan = (clean / spliced) ** (1 / KAPLAN_ALPHA) if clean > 0 and spliced > 0 else None
    chinchilla = ((clean - floor) / (spliced - floor)) ** (1 / exponent) if min(clean, spliced) > floor else None
    return {
        "kaplan_2020": {"share": kaplan, "alpha": KAPLAN_ALPHA},
        "chinchilla_2022": {"share": chinchilla, "irreducible_nats": floor, "exponent": exponent},
        "warning": {"text": LAW_WARNING},
    }
