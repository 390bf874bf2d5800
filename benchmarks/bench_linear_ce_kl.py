"""linear_ce_kl."""

from __future__ import annotations

from collections.abc import Callable

from saekernels.bench import Shape

OPS = ("loss",)
SHAPES = (Shape(256, 256, 8192),)


def test_linear_ce_kl(run: Callable[[], None]) -> None:
    run()
