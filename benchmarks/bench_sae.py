"""Whole SAEs: forward (TopK, JumpReLU), and forward with backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from saekernels.bench import OPS, Shape

SHAPES = (Shape(256, 512, 8192, 32),)
CASES = [
    pytest.param(op, one.name, shape, dtype, id=f"{op}-{one.name}-{shape}-{dtype}")
    for op in (
        "sae_topk",
        "sae_jumprelu",
        "sae_train",
    )
    for dtype in OPS[op].dtypes
    for shape in SHAPES
    for one in OPS[op].contenders(dtype)
    if not one.slow_setup
]


@pytest.mark.parametrize(("op", "contender", "shape", "dtype"), CASES)
def test_sae(run: Callable[..., None], op: str, contender: str, shape: Shape, dtype: torch.dtype) -> None:
    run(op, contender, shape, dtype)
