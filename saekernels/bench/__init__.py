"""Benchmarks: each op against what one would use instead, right answers only, in one process and in turns."""

from saekernels.bench.cpu import compare, scorecard
from saekernels.bench.cpu.record import Record, Row, schema
from saekernels.bench.cpu.runner import Settings, StoppedError, plan, run
from saekernels.bench.measure.shapes import Shape
from saekernels.bench.ops.table import GROUPS, OPS

__all__ = [
    "GROUPS",
    "OPS",
    "Record",
    "Row",
    "Settings",
    "Shape",
    "StoppedError",
    "compare",
    "plan",
    "run",
    "schema",
    "scorecard",
]
