"""Which latents each rank holds: contiguous rows of the weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from saekernels.sae.activations import AbsTopK, Activation, GroupMax, TopK


def rows_of(n_latents: int, activation: Activation, ranks: int) -> list[range]:
    """The latents of each rank: nearly as many each, a GroupMax's groups whole.

    Raises ValueError where a rank would have none.
    """
    size = n_latents // activation.k if isinstance(activation, GroupMax) else 1
    pieces = n_latents // size
    if pieces < ranks:
        what = "groups" if isinstance(activation, GroupMax) else "latents"
        raise ValueError(f"group: got {ranks} ranks for {pieces} {what}, need at least one for each rank")
    edges = [pieces * rank // ranks * size for rank in range(ranks + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def most_codes(n_latents: int, activation: Activation, ranks: int) -> int:
    """How many codes of each token every rank offers to a top-k: k, or as many as the largest shard has."""
    assert isinstance(activation, TopK | AbsTopK)
    return min(activation.k, max(map(len, rows_of(n_latents, activation, ranks))))


def activation_of(activation: Activation, rows: range, n_latents: int) -> Activation:
    """What the shard of these rows selects by."""
    if isinstance(activation, TopK | AbsTopK):
        return replace(activation, k=min(activation.k, len(rows)))
    if isinstance(activation, GroupMax):
        return GroupMax(activation.k * len(rows) // n_latents)
    return activation
