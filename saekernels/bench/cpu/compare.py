"""Two records of the same machine: what became slower, beyond noise and beyond what slowed everything."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekernels.bench.measure.contenders import OURS

# A median of n numbers has 1.2533 times the standard error of a mean; a quartile range is 1.349 standard deviations.
_MEDIAN_ERROR, _QUARTILES = 1.2533, 1.349
_SIGMAS, _LEAST = 3.0, 0.05
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Change:
    """One case of ours: B's time over A's, that over the machine's own drift, and how large noise can be."""

    case: Key
    before_ms: float
    after_ms: float
    ratio: float
    drift: float
    noise: float

    @property
    def relative(self) -> float:
        return self.ratio / self.drift

    @property
    def verdict(self) -> str:
        """ "slower", "faster" or "same"."""
        if self.relative > 1 + self.noise:
            return "slower"
        return "faster" if self.relative < 1 / (1 + self.noise) else "same"


def read(path: str | Path) -> dict[str, Any]:
    """A record written by `saekernels bench`. Raises ValueError for anything else."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable record: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("rows"), list) or "machine" not in data:
        raise ValueError(f"{path}: no record of saekernels bench")
    if not isinstance(data["machine"], dict):
        raise ValueError(f"{path}: machine: got {data['machine']!r:.60}, need what saekernels bench writes of it")
    for number, row in enumerate(data["rows"]):
        wrong = _fault(row)
        if wrong:
            raise ValueError(f"{path}: row {number}: {wrong}")
    return data


def _fault(row: Any) -> str | None:
    """What of a row cannot be compared."""
    if not isinstance(row, dict):
        return f"got {row!r:.60}, need an object"
    for name in ("op", "dtype", "contender"):
        if not isinstance(row.get(name), str):
            return f"{name}: got {row.get(name)!r:.60}, need a text"
    if not isinstance(row.get("shape"), dict):
        return f"shape: got {row.get('shape')!r:.60}, need sizes by name"
    for name in ("median_ms", "iqr_ms", "rounds"):
        value = row.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value) and value >= 0):
            return f"{name}: got {value!r:.60}, need a number from 0 on, or null"
    return None


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    """Every case of ours that both records timed.

    drift: the median of B over A of all other contenders, torch and the peers, whose code is the same; 1 without any.
    noise: three standard errors of the ratio of medians, from quartile ranges and rounds, and at least 5 %.

    Raises ValueError where nothing is in both.
    """
    before, after = _rows(a), _rows(b)
    shared = [key for key in before if key in after]
    mine = [key for key in shared if key[1] == OURS]
    if not mine:
        raise ValueError("the records have no case in common")
    others = [after[key]["median_ms"] / before[key]["median_ms"] for key in shared if not key[1].startswith(OURS)]
    drift = statistics.median(others) if others else 1.0
    changes = []
    for key in mine:
        old, new = before[key], after[key]
        error = math.hypot(_error(old), _error(new))
        ratio = new["median_ms"] / old["median_ms"]
        changes.append(Change(key[0], old["median_ms"], new["median_ms"], ratio, drift, max(_LEAST, _SIGMAS * error)))
    return changes


def _rows(record: Mapping[str, Any]) -> dict[tuple[Key, str], dict[str, Any]]:
    found = {}
    for row in record["rows"]:
        if row.get("median_ms"):
            shape = " ".join(f"{name}={size}" for name, size in row["shape"].items())
            found[(row["op"], row["dtype"], shape), row["contender"]] = row
    return found


def _error(row: Mapping[str, Any]) -> float:
    """Relative standard error of a row's median."""
    spread = (row.get("iqr_ms") or 0.0) / _QUARTILES
    return float(_MEDIAN_ERROR * spread / math.sqrt(max(1, row.get("rounds") or 1)) / row["median_ms"])
