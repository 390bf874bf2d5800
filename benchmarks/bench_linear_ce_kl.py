"""linear_ce_kl."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from saekernels.bench import OPS, Shape

SHAPES = (Shape(256, 256, 8192),)
CASES = [
    pytest.param(op, one.name, shape, dtype, id=f"{op}-{one.name}-{shape}-{dtype}")
    for op in ("loss",)
    for dtype in OPS[op].dtypes
    for shape in SHAPES
    for one in OPS[op].contenders(dtype)
    if not one.slow_setup
]


@pytest.mark.parametrize(("op", "contender", "shape", "dtype"), CASES)
def test_linear_ce_kl(run: Callable[..., None], op: str, contender: str, shape: Shape, dtype: torch.dtype) -> None:
    run(op, contender, shape, dtype)
