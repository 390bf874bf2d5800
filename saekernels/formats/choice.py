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
    wanted = "folder or file of one: " + "; ".join(f"{form.NAME}: {form.FILES}" for form in ALL)
    if place.is_file():
        return f"path: got {str(place)!r}, need a checkpoint {wanted}"
    found = sorted(entry.name for entry in place.iterdir())[:8]
    inside = [entry.name for entry in sorted(place.iterdir()) if entry.is_dir() and (entry / "cfg.json").exists()]
    hint = f"; it has checkpoints inside: {', '.join(inside[:8])}" if inside else ""
    layers = any(re.match("layer", entry.name) and entry.is_file() for entry in place.iterdir())
    hint += "; name the file of one layer" if layers else ""
    if not layers and any(re.match(r"(W_(enc|dec)|params_layer)_\d+", entry.name) for entry in place.iterdir()):
        return (
            f"path: got {str(place)!r}, a cross-layer transcoder, which writes to several layers and is no single SAE"
        )
    return f"path: got {str(place)!r} with {found}, need a checkpoint {wanted}{hint}"
