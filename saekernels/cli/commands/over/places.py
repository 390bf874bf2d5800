"""Which checkpoints of one training `saekernels over` was given, and how far each had come."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from saekernels.cli.commands.scaling import label
from saekernels.errors import InputError

# In a pattern of --sae, where a checkpoint's name belongs.
NAME = "{}"
_STEP = re.compile(r"step[-_]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """One checkpoint. name: its folder's or its revision's; step: the number in that; revision: None of a folder."""

    name: str
    model: str
    revision: str | None
    step: int


def places_of(models: Sequence[str]) -> list[Place]:
    """The checkpoints by steps. InputError for one that is nowhere or has no number, or for two alike."""
    if len(models) < 2:
        raise InputError(f"MODEL: a training needs at least two checkpoints, got {len(models)}")
    found = sorted((_place(model) for model in models), key=lambda place: place.step)
    for one, other in itertools.pairwise(found):
        if one.step == other.step:
            raise InputError(f"MODEL: {one.name} and {other.name} are both of step {one.step}")
    return found


def _place(model: str) -> Place:
    if os.path.isdir(model):
        name, revision = label(model), None
        if not os.path.isfile(os.path.join(model, "config.json")):
            raise InputError(f"MODEL: {model} holds no checkpoint: it has no config.json")
    else:
        repository, _, name = model.rpartition("@")
        if not repository or not name:
            raise InputError(f"MODEL: {model} is no folder here, and a repository of the hub needs HUB_ID@REVISION")
        model, revision = repository, name
    numbers = _STEP.findall(name) or re.findall(r"\d+", name)
    if not numbers:
        raise InputError(f"MODEL: {name} says no step; need a name such as step512")
    return Place(name, model, revision, int(numbers[-1]))


def saes_at(patterns: Sequence[tuple[str, str]], place: Place) -> list[tuple[str, str]]:
    """(site, path) of the SAEs of one checkpoint."""
    return [(site, path.replace(NAME, place.name)) for site, path in patterns]


def check_saes(patterns: Sequence[tuple[str, str]], places: Sequence[Place]) -> None:
    """InputError, before hours of work, where a pattern leads to files at some checkpoints and to none at others."""
    for site, pattern in patterns:
        paths = [path for place in places for _, path in saes_at([(site, pattern)], place)]
        there = [os.path.exists(path) for path in paths]
        if any(there) and not all(there):
            raise InputError(f"--sae: {paths[there.index(False)]} is not there, other checkpoints' are")
