"""pytest benchmarks/ -n0: the contenders of `saekernels bench` under pytest-benchmark, at modest sizes.

For figures to quote use `saekernels bench cpu`, which lets contenders take turns; this is for watching them over time
(`--benchmark-autosave`, `--benchmark-compare`). A module names its OPS and SHAPES, and its test runs once for each of
their contenders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from saekernels.bench import OPS, Shape
from saekernels.bench.measure.contenders import Contender
from saekernels.bench.measure.peers import NOT_INSTALLED, NotInstalled


class Case(NamedTuple):
    op: str
    dtype: torch.dtype
    shape: Shape
    contender: Contender

    def __str__(self) -> str:
        return f"{self.op}-{self.contender.name}-{self.shape}-{self.dtype}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = [
        Case(op, dtype, shape, contender)
        for op in metafunc.module.OPS
        for dtype in OPS[op].dtypes
        for shape in metafunc.module.SHAPES
        for contender in OPS[op].contenders(dtype)
        if not contender.slow_setup
    ]
    metafunc.parametrize("case", cases, ids=str)


@pytest.fixture
def run(benchmark: BenchmarkFixture, case: Case) -> Callable[[], None]:
    """A function that times the case, once its answer has been checked."""

    @torch.no_grad()
    def check_and_time() -> None:
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

    return check_and_time


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Benchmarks take turns: `-n auto`, which the tests' settings ask for, means none beside this one."""
    return 0
