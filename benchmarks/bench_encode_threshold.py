"""encode_threshold, a batch and one token."""

from __future__ import annotations

from collections.abc import Callable

from saekernels.bench import Shape

OPS = ("threshold",)
SHAPES = (Shape(256, 512, 8192, 32), Shape(1, 512, 8192, 32))


def test_encode_threshold(run: Callable[[], None]) -> None:
    run()
