"""Which format a checkpoint has. All that fit are looked at: what would be two functions is refused, never guessed."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch

from saekernels.formats.candidates import ALL, Candidate, Wanted, candidates, form_of
from saekernels.formats.checkpoint import Checkpoint
from saekernels.formats.files import DamagedError, FormatError
from saekernels.formats.looking import followed
from saekernels.formats.readers import state_dict

# Files that other formats' weights have beside them.
_CONFIGS = ("cfg.json", "config.json", "config.yaml", "config.yml", "hyperparams.json")
_CROSS_LAYER = re.compile(r"(W_(enc|dec)|params_layer)_\d+")
_WEIGHTS = (".pt", ".pth", ".npz", ".safetensors")


def read(place: Path, wanted: Wanted) -> Checkpoint:
    """The checkpoint at a path. FormatError where nothing fits, or where what fits would be several functions."""
    named = None if wanted.format is None else form_of(wanted.format)
    fitting = list(candidates(place, wanted, named))
    if not fitting and named is not None:
        raise FormatError(f"format: got {wanted.format!r}, but {place} has none of its files: {named.FILES}")
    if not fitting:
        raise FormatError(_unknown(place))
    if wanted.config is not None and not any(one.form is state_dict for one in fitting):
        own = f"which has its own: {fitting[0].form.FILES}"
        raise FormatError(f"config: got {sorted(wanted.config)}, but {place} is of {fitting[0]}, {own}")
    return _read(fitting[0]) if len(fitting) == 1 else _the_one(place, fitting)


def _read(one: Candidate) -> Checkpoint:
    """What fits, read. Warns of configs beside the weights that its format does not read: they might say otherwise."""
    with followed() as files:
        found = one.read()
    weights = {one.place, *files} if one.place.is_file() else set(files)
    weights = {file for file in weights if file.suffix in _WEIGHTS}
    names = {file: (*_CONFIGS, f"{file.stem}.json", f"{file.stem}_cfg.json") for file in weights}
    beside = {file.parent / name for file in weights for name in names[file]}
    unread = sorted(path.name for path in beside - set(files) if path.is_file())
    if unread:
        told = f"{', '.join(map(repr, unread))} beside it is no part of {found.metadata.format} and was not read"
        warnings.warn(f"{one.place}: {told}", stacklevel=4)
    return found


def _the_one(place: Path, fitting: list[Candidate]) -> Checkpoint:
    """What several formats agree on; those that refuse it do not fit after all. A damaged file is an error still."""
    found: list[tuple[Candidate, Checkpoint, list[Any]]] = []
    failed: list[FormatError] = []
    for one in fitting:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found.append((one, _read(one), told))
            except DamagedError:
                raise
            except FormatError as error:
                failed.append(error)
    if not found:
        raise failed[0]
    _, first, told = found[0]
    others = [one for one, checkpoint, _ in found[1:] if not same_function(first, checkpoint)]
    if others:
        raise FormatError(
            f"{place}: fits {found[0][0]} and {others[0]}, which are other functions; name the file, or say which: "
            f"format={others[0].form.NAME!r}"
        )
    for warning in told:
        warnings.warn(str(warning.message), warning.category, stacklevel=2)
    return first


def same_function(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints hold the same tensors and use them in the same way."""
    if (one.activation, one.options, one.dtype) != (other.activation, other.options, other.dtype):
        return False
    return one.state.keys() == other.state.keys() and all(
        value.dtype == other.state[name].dtype and torch.equal(value, other.state[name])
        for name, value in one.state.items()
    )


def _unknown(place: Path) -> str:
    wanted = "need a checkpoint folder or file of one: " + "; ".join(f"{form.NAME}: {form.FILES}" for form in ALL)
    got = f"path: got {str(place)!r}"
    if place.is_file():
        return f"{got}, {wanted}"
    entries = sorted(place.iterdir())
    files = [entry.name for entry in entries if entry.is_file() and entry.suffix in _WEIGHTS]
    inside = files if len(files) > 1 else [one.name for one in entries if one.is_dir() and _holds_a_checkpoint(one)]
    if inside and not all(_CROSS_LAYER.match(name) for name in inside):
        what = "its files of weights" if inside is files else "the checkpoints inside"
        return f"{got}, need one of {what} by name: {_listed(inside)}"
    if any(_CROSS_LAYER.match(name) for name in files):
        return f"{got}, a cross-layer transcoder, which writes to several layers and is no single SAE"
    return f"{got} with {[entry.name for entry in entries[:8]]}, {wanted}"


def _holds_a_checkpoint(folder: Path) -> bool:
    try:
        return any(entry.name in _CONFIGS or entry.suffix in _WEIGHTS for entry in folder.iterdir())
    except OSError:
        return False


def _listed(names: list[str]) -> str:
    more = f" or another of {len(names)}" if len(names) > 8 else ""
    return " or ".join(map(repr, names[:8])) + more
