"""Benchmarks: each op against what one would use instead, right answers only, in one process and in turns."""

from . import compare, scorecard
from .cases import Shape
from .ops import GROUPS, OPS
from .record import Record, Row, schema
from .runner import Settings, plan, run

__all__ = ["GROUPS", "OPS", "Record", "Row", "Settings", "Shape", "compare", "plan", "run", "schema", "scorecard"]
