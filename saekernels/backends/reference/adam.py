"""One step of Adam, with its gradient at right angles to each row and rows of unit norm where wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.backends.adam_step import AdamStep
from saekernels.backends.reference.rows import accumulator, fixed_order_sum


def adam_step(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: AdamStep) -> None:
    """See `AdamStep`: changes all but `grad` in place, of any strides."""
    wide = accumulator(param.dtype)
    p, g = param.to(wide), grad.to(wide) * step.scale
    if step.project:
        squares = fixed_order_sum(p * p)[:, None]
        g = g - torch.where(squares == 0, 0.0, fixed_order_sum(g * p)[:, None] / squares) * p
    if step.decay:
        g = g + step.decay * p
    mean = step.beta1 * exp_avg.to(wide) + (1 - step.beta1) * g
    square = step.beta2 * exp_avg_sq.to(wide) + (1 - step.beta2) * g * g
    p = step.shrink * p - step.step_size * mean / (square.sqrt() / step.root + step.eps)
    if step.unit_norm:
        norms = fixed_order_sum(p * p).sqrt()[:, None]
        p = p / torch.where(norms == 0, 1.0, norms)
    exp_avg.copy_(mean)
    exp_avg_sq.copy_(square)
    param.copy_(p)
