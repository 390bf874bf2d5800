"""Benchmarks: each op against what one would use instead, right answers only, in one process and in turns."""

from saekernels.bench import compare, scorecard
from saekernels.bench.cases import Shape
from saekernels.bench.ops import GROUPS, OPS
from saekernels.bench.record import Record, Row, schema
from saekernels.bench.runner import Settings, plan, run

__all__ = ["GROUPS", "OPS", "Record", "Row", "Settings", "Shape", "compare", "plan", "run", "schema", "scorecard"]
