"""What a scorecard runs."""

from __future__ import annotations

from dataclasses import dataclass

from saekernels.bench.gpu import cases
from saekernels.bench.gpu.cases import Case


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        rounds: at most, per contender; at least three.
        budget: seconds of timed calls per case.
        quick: a few cases, nothing compiled by torch, two dtypes in the gate, rougher ceilings.
        ops: names of OPS, or None for all.
    """

    rounds: int = 20
    budget: float = 4.0
    quick: bool = False
    ops: tuple[str, ...] | None = None
    chosen: tuple[Case, ...] | None = None

    def cases(self) -> tuple[Case, ...]:
        """Those of the plan, or those given."""
        found = self.chosen or (cases.QUICK if self.quick else cases.FULL)
        return tuple(case for case in found if self.ops is None or case.op in self.ops)
