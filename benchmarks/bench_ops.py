"""The contenders of `saekernels bench` under pytest-benchmark, at modest sizes; see conftest.py for the command.

For figures to quote use `saekernels bench cpu`, which lets contenders take turns; this is for watching them over time
(`--benchmark-autosave`, `--benchmark-compare`). `-k decode` or `-k "sae_topk and saekernels"` picks among them.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from saekernels.bench import OPS, Shape
from saekernels.bench.measure.contenders import Contender
from saekernels.bench.measure.peers import NOT_INSTALLED, NotInstalled

BATCH, TOKEN = Shape(256, 512, 8192, 32), Shape(1, 512, 8192, 32)
SHAPES = {
    "decode": (BATCH, TOKEN),
    "gather_matmul": (BATCH,),
    "threshold": (BATCH, TOKEN),
    "encode": (BATCH, TOKEN),
    "loss": (Shape(256, 256, 8192),),
    "sae_topk": (BATCH,),
    "sae_jumprelu": (BATCH,),
    "sae_train": (BATCH,),
    "adam": (BATCH,),
    "adam_rows": (BATCH,),
}


class Case(NamedTuple):
    """One contender on one problem."""

    op: str
    dtype: torch.dtype
    shape: Shape
    contender: Contender

    def __str__(self) -> str:
        return f"{self.op}-{self.contender.name}-{self.shape}-{self.dtype}"


CASES = [
    Case(op, dtype, shape, contender)
    for op, shapes in SHAPES.items()
    for dtype in OPS[op].dtypes
    for shape in shapes
    for contender in OPS[op].contenders(dtype)
    if not contender.slow_setup
]


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_op(benchmark: BenchmarkFixture, case: Case) -> None:
    """Times the case, once its answer has been checked."""
    op, contender = OPS[case.op], case.contender
    problem = op.make(case.shape, case.dtype)
    try:
        ready = contender.prepare(problem)
    except NotInstalled:
        pytest.skip(NOT_INSTALLED)
    wrong = (contender.check or op.check)(problem, op.expect(problem), ready.call(*problem.tokens))
    assert wrong is None, f"{contender.name}: {wrong}"
    benchmark.group = f"{case.op} {case.dtype} {case.shape}"
    benchmark.extra_info.update(contender=contender.name, detail=ready.detail, **case.shape.sizes())
    benchmark(ready.call, *problem.tokens)
