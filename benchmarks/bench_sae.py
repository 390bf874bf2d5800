"""Whole SAEs: forward (TopK, JumpReLU), and forward with backward."""

from __future__ import annotations

from collections.abc import Callable

from saekernels.bench import Shape

OPS = ("sae_topk", "sae_jumprelu", "sae_train")
SHAPES = (Shape(256, 512, 8192, 32),)


def test_sae(run: Callable[[], None]) -> None:
    run()
