"""One small trainer of every class that is served, and how a step of it is taken."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from saekernels.adapters.dictionary_learning.trainers import TRAINERS


def trials(width: int, latents: int, k: int) -> Iterator[tuple[Any, Callable[[Tensor], Tensor]]]:
    """(a new trainer, its loss from x [T, width])."""
    for kind in TRAINERS:
        options: dict[str, Any] = {
            "steps": 100, "activation_dim": width, "dict_size": latents, "layer": 0, "lm_name": "none",
            "warmup_steps": 1, "device": "cpu",
        }  # fmt: skip
        if "TopK" in kind.__name__:
            options["k"] = k
        else:
            options["sparsity_warmup_steps"] = 1
        if "Matryoshka" in kind.__name__:
            options["group_fractions"] = [0.25, 0.75]
        trainer: Any = kind(**options)
        yield trainer, functools.partial(_loss, trainer)


def _loss(trainer: Any, x: Tensor) -> Tensor:
    return trainer.loss(x, step=1)
