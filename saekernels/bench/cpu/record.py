"""The record of a run: where, when, with what, and every row; as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib import resources
from typing import Any, NamedTuple

from saekernels.bench.measure.ceilings import Roofs
from saekernels.bench.measure.contenders import OURS, Work
from saekernels.bench.ops.table import OPS

SCHEMA = 1
# Of the rows of a call: a fallback that is routine is a defect, and its time says nothing.
MOST_FALLBACKS = 0.01


@dataclass
class Row:
    """One contender of one case. Figures are None where it was not timed (see `status`) or where unknown.

    Attributes:
        shape: sizes by name (T, d, F, k, or T, d, V).
        status: "ok", or why there are no figures.
        detail: what the contender chose, such as the rows of a chunk.
        iqr_ms: upper less lower quartile.
        ratio_to_ours: its median over that of `saekernels`: above 1, ours is faster.
        paired_ratio_to_ours: the median of the ratios within each round.
        peak_mib: memory beyond the inputs.
        eager_ms: on a GPU, of a call without a graph, the host's launches included; median_ms is of a graph.
        instructions: of one call, on all threads; None where the system counts none.
        fallback_rows: of one call of ours, those that no screen could serve.
        bytes, flops: the least that the op takes, the same for every contender.
        gb_per_s, gflop_per_s: these over the median time.
        share_of_bound: the least time by the measured ceilings, over the median time.
        share_of_float32, share_of_bfloat16, share_of_int8, share_of_read: the same by each ceiling alone, above 1 for a
            product that is not made in that dtype, or data that come from caches.
    """

    op: str
    dtype: str
    shape: dict[str, int]
    contender: str
    status: str
    detail: str = ""
    median_ms: float | None = None
    iqr_ms: float | None = None
    rounds: int = 0
    ratio_to_ours: float | None = None
    paired_ratio_to_ours: float | None = None
    peak_mib: float | None = None
    instructions: int | None = None
    fallback_rows: int | None = None
    bytes: int | None = None
    flops: int | None = None
    gb_per_s: float | None = None
    gflop_per_s: float | None = None
    share_of_bound: float | None = None
    share_of_float32: float | None = None
    share_of_bfloat16: float | None = None
    share_of_int8: float | None = None
    share_of_read: float | None = None
    eager_ms: float | None = None

    def hold_fallbacks(self, rows: int) -> bool:
        """Note the rows of a call that took a fallback; False, and a status that says so, where they are many."""
        self.fallback_rows = rows if self.contender.startswith(OURS) else None
        if rows <= MOST_FALLBACKS * self.shape["T"]:
            return True
        self.status = f"failed: {rows} of {self.shape['T']} rows took a fallback (saekernels info --stats)"
        return False

    def case(self) -> tuple[str, str, str]:
        """What the rows of one case share: op, dtype, shape in words."""
        return self.op, self.dtype, shape_text(self.shape)


class Verdict(NamedTuple):
    """Ours against the fastest baseline of a case that was timed; ratio None where either was not."""

    case: tuple[str, str, str]
    baseline: str
    ratio: float | None


@dataclass
class Record:
    """A run. `commit` and `dirty` are None outside a checkout."""

    date: str
    commit: str | None
    dirty: bool | None
    versions: dict[str, str | None]
    machine: dict[str, Any]
    settings: dict[str, Any]
    memory_method: str
    roofs: Roofs
    rows: list[Row]

    def hold_against(self, roofs: Roofs) -> None:
        """Set the ceilings, and every row's share of what they allow."""
        self.roofs = roofs
        for row in self.rows:
            if row.median_ms and row.bytes is not None and row.flops is not None:
                work, seconds = Work(row.bytes, row.flops), row.median_ms / 1e3
                row.share_of_bound = roofs.seconds(work, row.dtype) / seconds
                for name, share in roofs.shares(work, seconds).items():
                    setattr(row, f"share_of_{name}", share)

    def sort(self) -> None:
        """By op; cases and contenders stay in their order."""
        self.rows.sort(key=lambda row: list(OPS).index(row.op))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as `schema()` says."""
        return {"schema": SCHEMA, **asdict(self), "roofs": self.roofs._asdict()}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """One line per row; the shape as "T=1 d=768 F=24576 k=32", what the run has in common in every line."""
        common = {
            "date": self.date,
            "commit": self.commit,
            "dirty": self.dirty,
            "cpu": self.machine["model"],
            "threads": self.machine["threads"],
            "simd_level": self.machine["simd_level"],
            "torch": self.versions["torch"],
        }
        text = io.StringIO()
        names = [field.name for field in fields(Row)]
        writer = csv.DictWriter(text, [*names, *common], lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({**asdict(row), "shape": shape_text(row.shape), **common})
        return text.getvalue()

    def by_case(self) -> dict[tuple[str, str, str], list[Row]]:
        """Rows of each case, in order."""
        found: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.case(), []).append(row)
        return found

    def verdicts(self) -> list[Verdict]:
        """For every case, ours against its fastest baseline."""
        return [_verdict(case, rows) for case, rows in self.by_case().items()]


def _verdict(case: tuple[str, str, str], rows: Iterable[Row]) -> Verdict:
    names = OPS[case[0]].baselines
    medians = {row.contender: row.median_ms or math.inf for row in rows if row.contender in (OURS, *names)}
    against = min(names, key=lambda name: medians.get(name, math.inf))
    ratio = next((row.paired_ratio_to_ours for row in rows if row.contender == against), None)
    return Verdict(case, against, ratio)


def shape_text(shape: dict[str, int]) -> str:
    """ "T=1 d=768 F=24576 k=32"."""
    return " ".join(f"{name}={size}" for name, size in shape.items())


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def schema() -> dict[str, Any]:
    """The JSON schema of a record."""
    return dict(json.loads(resources.files(__package__).joinpath("schema.json").read_text(encoding="utf-8")))
