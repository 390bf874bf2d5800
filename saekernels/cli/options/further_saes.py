"""Further SAEs of a site that the command line asks for: edits of a latent, and controls of which a part is random."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, cast, get_args

from saekernels.errors import InputError, kind_of
from saekernels.sae.controls import control_of
from saekernels.sae.edits import Edit, EditedSAE, Operation
from saekernels.sae.module import SAE

_EDIT = re.compile(
    rf"(?P<entry>.+):(?P<latent>\d+):(?P<operation>{'|'.join(get_args(Operation))})(?P<values>(:[^:]+)*)"
)


def edit(text: str) -> tuple[str, Edit]:
    """(site, edit) of "SITE:LATENT:OP[:VALUE[:VALUE]]"."""
    match = _EDIT.fullmatch(text)
    if match is None:
        operations = ", ".join(get_args(Operation))
        raise argparse.ArgumentTypeError(f"need SITE:LATENT:OP[:VALUE[:VALUE]] with OP of {operations}, got {text!r}")
    try:
        values = tuple(float(value) for value in match["values"].split(":")[1:])
        return match["entry"], Edit(int(match["latent"]), cast(Operation, match["operation"]), values)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def with_edits(saes: dict[str, SAE], edits: Sequence[tuple[str, Edit]], keep_error: bool) -> dict[str, Any]:
    """The SAEs, and for every site with edits one more, "SITE#edited", that makes all of them."""
    made: dict[str, Any] = dict(saes)
    for entry in dict.fromkeys(entry for entry, _ in edits):
        if entry not in saes:
            raise InputError(f"--edit: no SAE was given for {entry!r}; there are {', '.join(saes)}")
        name = f"{entry}{'-' if '#' in entry else '#'}edited"
        try:
            made[name] = EditedSAE(saes[entry], [one for site, one in edits if site == entry], keep_error)
        except ValueError as error:
            raise InputError(f"--edit: {entry}: {error}") from error
    return made


def with_controls(saes: dict[str, Any], kinds: Sequence[str], seed: int) -> dict[str, Any]:
    """The SAEs, and of each one more for every kind, "SITE#KIND" (of "SITE#NAME", "SITE#NAME-KIND")."""
    made: dict[str, Any] = dict(saes)
    for entry, sae in saes.items() if kinds else ():
        if not isinstance(sae, SAE):
            raise InputError(f"--control: {entry} is {kind_of(sae)}, not one whole SAE (see --latent-parallel)")
        for kind in dict.fromkeys(kinds):
            name = f"{entry}{'-' if '#' in entry else '#'}{kind}"
            if name in saes:
                raise InputError(f"--control: there is an SAE {name!r} already; give it another name with --sae")
            made[name] = control_of(sae, kind, seed)
    return made
