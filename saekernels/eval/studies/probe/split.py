"""Which labelled texts are fitted on and which are tested: never two of one group on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from saekernels.display.numbers import counted
from saekernels.errors import InputError
from saekernels.eval.text.labelled import LabelledSet

HELD_OUT = 0.3
FOLDS = 3
# Of each class, on each side.
LEAST = 8
Train = Literal["rest", "one"]
RULE = (
    f"{HELD_OUT:.0%} of the groups are held out, of each kind of group (its labels and its values of the fields) as "
    "many; texts of one group are on one side"
)
HOW = {
    "rest": "for each value of a field, a probe of the training groups' texts with the other values is tested on the "
    "held-out groups' texts with that value",
    "one": "for each value of a field, a probe of the training groups' texts with that value is tested on the held-out "
    "groups' texts with each of the other values together",
}


@dataclass(frozen=True)
class Split:
    """Of n texts: positive [n] bool; groups [n] int, the number of each text's group; strata [groups], of which kind a
    group is; held [n] bool, whether it is tested; folds [n] int, for choices among the others."""

    positive: np.ndarray
    groups: np.ndarray
    strata: tuple[object, ...]
    held: np.ndarray
    folds: np.ndarray


@dataclass(frozen=True)
class Shift:
    """A change of distribution: fitted on texts `train` [n] bool, tested on `test` [n] bool; of a field's value."""

    field: str
    value: str
    train: np.ndarray
    test: np.ndarray


def split_texts(one: LabelledSet, seed: int) -> Split:
    """Hold groups out, drawn by `seed`. Raises InputError where either side lacks texts of a class."""
    names = list(dict.fromkeys(text.group for text in one.texts))
    number = {name: index for index, name in enumerate(names)}
    groups = np.array([number[text.group] for text in one.texts])
    positive = np.array([text.label == one.positive for text in one.texts])
    kinds: list[set[object]] = [set() for _ in names]
    for text, group, label in zip(one.texts, groups, positive, strict=True):
        kinds[group] |= {bool(label), *((field, text.fields[field]) for field in one.shifts)}
    strata = tuple(tuple(sorted(map(str, kind))) for kind in kinds)
    held, folds = np.zeros(len(names), dtype=bool), np.zeros(len(names), dtype=np.int64)
    rng = np.random.default_rng((seed, 11))
    for kind in dict.fromkeys(strata):
        own = rng.permutation([index for index, other in enumerate(strata) if other == kind])
        most = round(HELD_OUT * len(own)) if len(own) > 2 else len(own) - 1
        held[own[:most]] = True
        folds[own[most:]] = np.arange(len(own) - most) % FOLDS
    made = Split(positive, groups, strata, held[groups], folds[groups])
    for side, rows in (("to fit on", ~made.held), ("held out", made.held)):
        if (lack := _lack(made.positive[rows])) is not None:
            raise InputError(
                f"labels: {one.name}: {lack} {side}, need at least {LEAST} of each class on either side; "
                f"there are {counted(len(one.texts), 'text')} in {counted(len(names), 'group')}"
            )
    return made


def shifts_of(one: LabelledSet, split: Split, train: Train) -> tuple[list[Shift], list[str]]:
    """The changes of distribution with enough texts on both sides, and what is left out, in words."""
    found, notes = [], []
    for shift in _shifts(one, split, train):
        sides = (("to fit on", shift.train), ("to test", shift.test))
        lacks = [(side, lack) for side, rows in sides if (lack := _lack(split.positive[rows])) is not None]
        if lacks:
            side, lack = lacks[0]
            what = f"Left out: {one.name}, {shift.field} {shift.value}"
            notes.append(f"{what}: {lack} {side}, need at least {LEAST} of each class.")
        else:
            found.append(shift)
    return found, notes


def _shifts(one: LabelledSet, split: Split, train: Train) -> Iterator[Shift]:
    for field in one.shifts:
        values = np.array([text.fields[field] for text in one.texts])
        for value in dict.fromkeys(values.tolist()):
            own = values == value
            fitted = own if train == "one" else ~own
            yield Shift(field, value, fitted & ~split.held, ~fitted & split.held)


def _lack(positive: np.ndarray) -> str | None:
    """What class there is too little of, if there is."""
    counts = (("positive", int(positive.sum())), ("negative", int((~positive).sum())))
    name, number = min(counts, key=lambda one: one[1])
    return None if number >= LEAST else f"{counted(number, f'{name} text')}"
