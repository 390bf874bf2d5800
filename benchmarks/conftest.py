"""pytest benchmarks/ -n0: the contenders of `saekernels bench` under pytest-benchmark, at modest sizes.

For figures to quote use `saekernels bench cpu`, which lets contenders take turns; this is for watching them over time
(`--benchmark-autosave`, `--benchmark-compare`).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from saekernels.bench import OPS, Shape
from saekernels.bench.peers import NOT_INSTALLED

Run = Callable[[str, str, Shape, torch.dtype], None]


@pytest.fixture
def run(benchmark: BenchmarkFixture) -> Run:
    """Times one contender of one op, once its answer has been checked: run(op, contender, shape, dtype)."""

    @torch.no_grad()
    def check_and_time(op_name: str, contender_name: str, shape: Shape, dtype: torch.dtype) -> None:
        op = OPS[op_name]
        contender = next(one for one in op.contenders(dtype) if one.name == contender_name)
        problem = op.make(shape, dtype)
        try:
            ready = contender.prepare(problem)
        except ImportError:
            pytest.skip(NOT_INSTALLED)
        wrong = (contender.check or op.check)(problem, op.expect(problem), ready.call(*problem.tokens))
        assert wrong is None, f"{contender_name}: {wrong}"
        benchmark.group = f"{op_name} {dtype} {shape}"
        benchmark.extra_info.update(op=op_name, contender=contender_name, detail=ready.detail, **shape.sizes())
        benchmark(ready.call, *problem.tokens)

    return check_and_time
