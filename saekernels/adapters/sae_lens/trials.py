"""One small training SAE of every class, and how a step of it is taken."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from sae_lens import registry
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor


def trials(width: int, latents: int, k: int) -> Iterator[tuple[Any, Callable[[Tensor], Tensor]]]:
    """(a new object, its loss from x [T, width])."""
    classes: dict[str, dict[str, Any]] = {
        "topk": {"k": k},
        "batchtopk": {"k": k},
        "matryoshka_batchtopk": {"k": k, "matryoshka_widths": [latents // 4, latents]},
        "jumprelu": {},
        "standard": {},
        "gated": {},
    }
    for architecture, options in classes.items():
        kind, config = registry.get_sae_training_class(architecture)
        module: Any = kind(config(d_in=width, d_sae=latents, **options))
        yield module, functools.partial(_loss, module)


def _loss(module: Any, x: Tensor) -> Tensor:
    coefficients = dict.fromkeys(module.get_coefficients(), 1.0)
    return module.training_forward_pass(TrainStepInput(x, coefficients, None, 0, False)).loss
