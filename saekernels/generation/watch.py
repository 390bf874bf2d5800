"""What is watched while a model writes, and what was seen: an event for every token at which a latent speaks up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.ops import _check
from saekernels.sae.codes import Codes


@dataclass(frozen=True)
class Watch:
    """A latent of the SAE at a site, and the value that it has to exceed.

    latent: None for all of them. stop: end a text once such a value is at a token that the model wrote (not at one of
    its prompt).

    Raises InputError for a site that is no string, a latent that is no index, a threshold that is no number, negative
    or not finite, and a stop that is no bool.
    """

    site: str
    latent: int | None = None
    threshold: float = 0.0
    stop: bool = False

    def __post_init__(self) -> None:
        if self.latent is not None:
            latent = _check.integer(self.latent)
            if latent is None or latent < 0:
                raise InputError(f"watch: got latent {self.latent!r:.40}, need an index from 0, or None for all")
            object.__setattr__(self, "latent", latent)
        if not isinstance(self.site, str):
            raise InputError(f"watch: got site {self.site!r:.40}, need its name")
        given: object = self.threshold
        if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= float(given) < math.inf:
            raise InputError(f"watch: got threshold {self.threshold!r:.40}, need a finite number from 0")
        object.__setattr__(self, "threshold", float(self.threshold))
        if not isinstance(self.stop, bool):
            raise InputError(f"watch: got stop {self.stop!r:.40}, need True or False")

    def __str__(self) -> str:
        """As the command line takes it."""
        latent = "" if self.latent is None else f":{self.latent}"
        return f"{self.site}{latent}>{self.threshold:g}"


@dataclass(frozen=True)
class Fired:
    """A watched latent above its threshold at one token.

    prompt: the row of the batch. position: of the token in its text, 0 being the first that is no padding. token: its
    id. generated: whether the model wrote it. value: as the encoder gave it, before any edit. stop: whether the watch
    is one that ends a text.
    """

    prompt: int
    position: int
    token: int
    generated: bool
    site: str
    latent: int
    value: float
    stop: bool


class Entry(NamedTuple):
    """A code above a threshold: its row, the latent, its value, and whether a watch that stops saw it."""

    row: int
    latent: int
    value: float
    stop: bool


def entries_above(codes: Codes, watches: Sequence[Watch], rows: Tensor) -> list[Entry]:
    """Where the codes exceed what these watches of one site say; by row, in the order of the codes.

    rows: [T] bool, which tokens count. No tensor of size tokens x latents is made. Waits for the device.
    """
    if codes.offsets is None:
        each = torch.full((codes.tokens,), codes.values.shape[-1], device=codes.values.device)
    else:
        each = codes.offsets.diff()
    row = torch.arange(codes.tokens, device=each.device).repeat_interleave(each)
    values, indices = codes.values.reshape(-1), codes.indices.reshape(-1)
    above, stop = (torch.zeros_like(values, dtype=torch.bool) for _ in range(2))
    for watch in watches:
        own = values > watch.threshold
        if watch.latent is not None:
            own &= indices == watch.latent
        above |= own
        if watch.stop:
            stop |= own
    at = (above & rows.to(row.device)[row]).nonzero().squeeze(1)
    columns = (row[at], indices[at], values[at].double(), stop[at])
    return [Entry(*one) for one in zip(*(column.tolist() for column in columns), strict=True)]
