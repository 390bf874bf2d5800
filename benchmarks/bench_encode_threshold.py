"""encode_threshold, whole batches and one token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from saekernels.bench import OPS, Shape

SHAPES = (Shape(256, 512, 8192, 32), Shape(1, 512, 8192, 32))
CASES = [
    pytest.param(op, one.name, shape, dtype, id=f"{op}-{one.name}-{shape}-{dtype}")
    for op in ("threshold",)
    for dtype in OPS[op].dtypes
    for shape in SHAPES
    for one in OPS[op].contenders(dtype)
    if not one.slow_setup
]


@pytest.mark.parametrize(("op", "contender", "shape", "dtype"), CASES)
def test_encode_threshold(run: Callable[..., None], op: str, contender: str, shape: Shape, dtype: torch.dtype) -> None:
    run(op, contender, shape, dtype)
