"""plan: how many latents to sample, which of them is the threshold, and how much room candidates get."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

# Neighbours of a sample of which only the best is kept, and how many such bests one program ranks.
GROUP_OF = 8
MOST_GROUPS = 8192
# The fewest keys that a program keeps which recomputes a failed row.
LEAST_KEPT = 64
# Below this many latents, and above this k, all scores of a few rows at a time are written and ranked.
LEAST_LATENTS = 4096
MOST_K = 1024
# Chance that a row has fewer than k candidates, or more than fit, if latents are in random order.
FAILURE = 1e-8


class Plan(NamedTuple):
    """A screened top-k.

    Attributes:
        step: one latent in so many is sampled.
        rank: which of the sample, from 1, is the threshold.
        capacity: candidates per row that are kept.
    """

    step: int
    rank: int
    capacity: int


@functools.lru_cache(maxsize=256)
def plan(latents: int, k: int, growth: float = 1.0) -> Plan | None:
    """The plan for k of `latents`, or None where screening does not pay.

    Args:
        growth: how many times more candidates an inexact screen lets through.
    """
    if latents < LEAST_LATENTS or k > MOST_K:
        return None
    step = 16 if k <= 256 and growth < 1.5 else 8
    step = max(step, -(-latents // (GROUP_OF * MOST_GROUPS)))
    rank = sample_rank(k, step)
    mean, deviation = rank * step, math.sqrt(rank) * step
    capacity = math.ceil((mean + 7 * deviation) * growth / 128) * 128
    if capacity * 2 > latents or rank * 4 > latents // step // GROUP_OF or kept(k) > capacity:
        return None
    return Plan(step, rank, capacity)


def kept(k: int) -> int:
    """How many keys a program keeps that recomputes part of a failed row: a power of two."""
    return max(LEAST_KEPT, 1 << (k - 1).bit_length())


def sample_rank(k: int, step: int) -> int:
    """The least r for which r or more of k latents are in a sample of 1 / step with a chance below FAILURE.

    If fewer than r of a row's k best are sampled, its r-th best sampled score is at most the k-th best of all.
    """
    p = 1 / step
    for rank in range(1, k + 1):
        tail = sum(math.comb(k, j) * p**j * (1 - p) ** (k - j) for j in range(rank, min(k, rank + 200) + 1))
        if tail < FAILURE:
            return rank
    return k
