"""Intervals in constant memory: documents are dealt out to a fixed number of groups, and each group is left out once.

A bootstrap would draw noise on top of the noise that there is: figures that count it (an overlap falls, an effective
number rises) would have intervals that lie beside them. A jackknife's lie about them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from saekernels.display.numbers import Interval
from saekernels.eval.sums.figures import Estimate, finite

GROUPS = 16
# 97.5 % points of Student's t with 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def leave_one_out(sums: Tensor) -> list[Tensor]:
    """The total of sums [G, ...] over the groups, then the totals without each of them: 1 + G tensors [...]."""
    total = sums.sum(0)
    return [total, *(total - one for one in sums)]


def estimate(values: Sequence[float]) -> Estimate:
    """A figure with its 95 % interval, from its value over all groups and then without each of 2 to 16 of them.

    The interval is the value -+ t * sqrt((G - 1) / G * sum of squared differences from their mean).
    """
    value, without = finite(values[0]), np.asarray(values[1:], dtype=np.float64)
    if value is None or len(without) < 2 or not np.isfinite(without).all():
        return Estimate(value, None)
    groups = len(without)
    error = np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum())
    half = float(_T[groups - 2] * error)
    interval: Interval = (value - half, value + half)
    return Estimate(value, interval)
