"""Controls of SAEs on the command line: `--control KIND ...` makes an entry "SITE#KIND" of every SAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saekernels.errors import InputError, kind_of
from saekernels.sae.controls import control_of
from saekernels.sae.module import SAE


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
