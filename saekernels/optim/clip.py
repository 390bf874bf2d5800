"""Clipping by norm without a pass that multiplies: the factor alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def clip_factor(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """What `torch.nn.utils.clip_grad_norm_` multiplies every gradient by; the gradients stay as they are.

    `optimizer.step(clip=clip_factor(parameters, max_norm))` then has the same effect.

    Args:
        parameters: those whose gradients, together, have the norm; those without a gradient are left out.
        max_norm: the largest Euclidean norm that is let through.

    Returns:
        A scalar in (0, 1], on the device of the first gradient.

    Raises:
        ValueError: max_norm is not above 0.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm: got {max_norm}, need a number above 0")
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    norm = torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)
