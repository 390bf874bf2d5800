"""One step of Adam on the native CPU kernels: one pass over memory, however parameters are laid out."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.backends.adam_step import AdamStep
from saekernels.backends.cpu.native import DTYPE_CODES, View, module, view


def adam_step(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: AdamStep) -> None:
    """See `AdamStep`: changes all but `grad` in place.

    Where the four lie alike in memory without gaps, transposed or not, it takes them as they lie. What lies otherwise
    is copied, and what changed copied back.
    """
    given = (param, exp_avg, exp_avg_sq)
    here = param if _without_gaps(param) else param.contiguous()
    mine = (here, *(_laid_out_as(here, one) for one in (exp_avg, exp_avg_sq)))
    like = _laid_out_as(here, grad)
    numbers = (
        step.scale,
        step.decay,
        step.shrink,
        step.beta1,
        1 - step.beta1,
        step.beta2,
        1 - step.beta2,
        step.step_size,
        step.root,
        step.eps,
    )
    module().adam_step(
        _matrix(here, step.project or step.unit_norm),
        like.data_ptr(),
        mine[1].data_ptr(),
        mine[2].data_ptr(),
        numbers,
        step.project,
        step.unit_norm,
        torch.get_num_threads(),
    )
    for one, own in zip(given, mine, strict=True):
        if own is not one:
            one.copy_(own)


def _matrix(param: Tensor, by_row: bool) -> View:
    """Its rows; or, where rows mean nothing, all of its memory as one."""
    if by_row:
        address, rows, columns, row_stride, column_stride, dtype = view(param)
        return (address, rows, columns, row_stride, 1 if columns == 1 else column_stride, dtype)
    return (param.data_ptr(), 1, param.numel(), param.numel(), 1, DTYPE_CODES[param.dtype])


def _strides(one: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions that there are more than one of."""
    return [(stride, size) for stride, size in zip(one.stride(), one.shape, strict=True) if size > 1]


def _without_gaps(one: Tensor) -> bool:
    """Whether its elements fill a piece of memory, each in a place of its own."""
    expected = 1
    for stride, size in sorted(_strides(one)):
        if stride != expected:
            return False
        expected *= size
    return True


def _laid_out_as(other: Tensor, one: Tensor) -> Tensor:
    """`one` itself if its elements lie in the same order, without gaps, in the same dtype; else a copy that does.

    A tensor that is negated lazily holds the opposite of its elements.
    """
    if one.dtype == other.dtype and _strides(one) == _strides(other) and not one.is_neg():
        return one
    return torch.empty_like(other).copy_(one)
