"""The numbers of one step of Adam of one parameter, as every backend's `adam_step` takes them."""

from __future__ import annotations

from typing import NamedTuple


class AdamStep(NamedTuple):
    """With g = scale * grad - (its part along the row of the parameter) + decay * parameter, a step is

        exp_avg    = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        parameter  = shrink * parameter - step_size * exp_avg / (sqrt(exp_avg_sq) / root + eps)

    in place, where `project` says whether that part goes, and `unit_norm` whether rows are divided by their norm
    afterwards; a row of zeros has no such part and stays. Both ask for a parameter [n, d]; without them any shape will
    do. All four tensors have that shape. They compute in float32, or float64 for float64, and round once, at the end.
    """

    scale: float
    decay: float
    shrink: float
    beta1: float
    beta2: float
    step_size: float
    root: float
    eps: float
    project: bool = False
    unit_norm: bool = False
