"""How controls are measured: which parts, of which SAEs, at which positions; checked before the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saekernels.errors import InputError
from saekernels.eval.passes.plan import site_of
from saekernels.eval.studies.family import Family
from saekernels.eval.text.windows import Tokens
from saekernels.splice.leave import Leave

PARTS = ("error", "seeds", "bits")
RUNS = {"error": ("sae", "linear", "remainder", "whole"), "seeds": ("sae",), "bits": ("sae", "quantised", "pca")}
"""What each part splices in: the SAE's output x_hat; x_hat and a part of the error; x_hat of quantised codes; PCA."""


@dataclass(frozen=True)
class Options:
    """How the controls are measured.

    parts: of PARTS; rule: which positions are left as they are;
    rise: by what share quantisation may raise the squared error; wanted: tokens that count.
    """

    parts: Sequence[str] = PARTS
    rule: Leave = field(default_factory=Leave)
    rise: float = 0.01
    wanted: int | None = None
    batch_size: int = 8
    bootstrap: int = 1000
    seed: int = 0

    @property
    def runs(self) -> tuple[str, ...]:
        """The kinds of splices that the parts need."""
        return tuple(dict.fromkeys(run for part in PARTS if part in self.parts for run in RUNS[part]))


def groups_of(saes: Mapping[str, Any], options: Options, off: bool) -> list[list[str]]:
    """The entries of each site that has several; off: whether there is a further text to compare them on."""
    if "seeds" not in options.parts:
        if off:
            raise InputError(f"off: a further text is for the part seeds, and parts are {', '.join(options.parts)}")
        return []
    by_site: dict[str, list[str]] = {}
    for entry in saes:
        by_site.setdefault(site_of(entry), []).append(entry)
    groups = [group for group in by_site.values() if len(group) > 1]
    if not groups and (off or tuple(options.parts) == ("seeds",)):
        asked = "off: a further text" if off else "parts: seeds"
        raise InputError(f"{asked} is for several SAEs of one site (SITE#LABEL), and every site has one")
    return groups


def check_options(options: Options, tokens: Tokens, family: Family | None) -> None:
    """InputError unless the options are in range, and the family was measured with these windows."""
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown or not options.parts:
        raise InputError(f"parts: got {', '.join(unknown) or 'none'}, need some of {', '.join(PARTS)}")
    if not 0 < options.rise < np.inf:
        raise InputError(f"rise: need a positive number, got {options.rise!r}")
    if family is not None and family.context != tokens.context:
        raise InputError(f"family: measured with windows of {family.context} tokens, here they have {tokens.context}")
