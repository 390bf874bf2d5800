"""Interleaved timing: contenders take turns, so that a machine's moods meet all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

LEAST_ROUNDS = 3
_CACHE_BYTES = 64 << 20

# Seconds by number of the round: which rounds a contender ran in is needed to pair it with another.
Times = dict[int, float]


@dataclass(frozen=True)
class Summary:
    """Seconds: the median and the quartiles of a contender's rounds."""

    median: float
    lower: float
    upper: float
    rounds: int


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    budget: float,
    between: Callable[[], object] = lambda: None,
    within: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time the calls in turns: round 0 in the given order, round 1 backwards, and so on.

    The caller has warmed them up. A contender whose share of the budget would be passed leaves after at least
    `LEAST_ROUNDS` rounds (or `rounds`, if fewer), so a slow one gets fewer rounds than a fast one.

    Args:
        calls: by name.
        rounds: at most this many for each.
        budget: seconds for all calls together, shared equally.
        between: run before each call, not timed; for example, `cold_caches()`.
        within: by name, what makes a context that is entered before a call and left after it, not timed either.
        clock: seconds.

    Returns:
        By name, the seconds of each round in which it ran.
    """
    share = budget / max(len(calls), 1)
    times: dict[str, Times] = {name: {} for name in calls}
    for number in range(rounds):
        # Turning round gives every contender another neighbour before it.
        for name in sorted(calls, key=list(calls).index, reverse=number % 2 == 1):
            if _has_had_its_share(times[name], share):
                continue
            with (within or {}).get(name, nullcontext)():
                between()
                start = clock()
                calls[name]()
                times[name][number] = clock() - start
    return times


def _has_had_its_share(times: Times, share: float) -> bool:
    spent, count = sum(times.values()), len(times)
    return count >= LEAST_ROUNDS and spent * (count + 1) / count > share


def summary(times: Times) -> Summary:
    """Median and quartiles of one contender's rounds."""
    seconds = list(times.values())
    if len(seconds) == 1:
        return Summary(seconds[0], seconds[0], seconds[0], 1)
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Summary(median, lower, upper, len(seconds))


def ratio_of_medians(times: Times, against: Times) -> float:
    """How many times as long as `against`: median over median."""
    return statistics.median(times.values()) / statistics.median(against.values())


def median_of_ratios(times: Times, against: Times) -> float | None:
    """The same, within each round that both ran in, then the median; a machine's slow minutes cancel out.

    None where no round has both.
    """
    common = times.keys() & against.keys()
    return statistics.median(times[number] / against[number] for number in common) if common else None


def cold_caches(cache_bytes: int | None = None) -> Callable[[], object]:
    """A function that fills the caches with something else, as the rest of a model does between two SAEs.

    One thread of numpy, which takes longer than OpenMP threads of the call before go on spinning: every contender
    starts with sleeping threads.
    """
    buffer = np.zeros(2 * cache_bytes if cache_bytes else _CACHE_BYTES, dtype=np.uint8)
    return lambda: np.add(buffer, 1, out=buffer)
