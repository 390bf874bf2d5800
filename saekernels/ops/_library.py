"""How an op reaches torch: its schema, its kernel, its shape function, its autocast rule.

`Library.define` and `impl` rather than `torch.library.custom_op`: the same contract with less wrapping per call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "saekernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def define(
    name: str,
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    matrices: tuple[str, ...] = (),
    dynamic_shape: bool = False,
) -> None:
    """Register saekernels::`name`.

    Args:
        schema: everything behind the name, e.g. "(Tensor x, *, int k) -> (Tensor, Tensor)".
        kernel: computes the op from real tensors, on every device.
        fake: the same signature on fake tensors: checks and empty outputs.
        matrices: the arguments that an autocast region casts to its dtype.
        dynamic_shape: whether an output's shape depends on data.
    """
    tags = [torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout]
    if dynamic_shape:
        tags.append(torch.Tag.dynamic_output_shape)
    LIBRARY.define(name + schema, tags=tuple(tags))
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    if matrices:
        for device, key in AUTOCAST_DEVICES.items():
            LIBRARY.impl(name, _autocast_rule(name, kernel, matrices, device, key), key)


def differentiable(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Register the gradient formula of saekernels::`name`."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def padded(values: Sequence[Any], size: int, fill: Any = None) -> tuple[Any, ...]:
    """`values` with `fill` appended up to `size`: torch drops trailing arguments left at their default."""
    return (*values, *[fill] * (size - len(values)))


def reshaped(fresh: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor that nobody else holds, in another shape of as many elements; no view, so it may be changed in place."""
    return fresh if fresh.shape == shape else fresh.resize_(shape)


def values_dtype(dtype: torch.dtype, wide: bool) -> torch.dtype:
    """The dtype of an op's values: that of its inputs, or, `wide`, that in which it accumulates."""
    return torch.promote_types(dtype, torch.float32) if wide else dtype


def _autocast_rule(
    name: str, kernel: Callable[..., Any], matrices: tuple[str, ...], device: str, key: str
) -> Callable[..., Any]:
    """As torch.nn.functional.linear: matrices take the region's dtype, vectors may stay float32, float64 stays."""
    names = list(inspect.signature(kernel).parameters)
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(argument: str, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
            return value
        if argument in matrices:
            return value.to(dtype)
        return value if value.dtype in (dtype, torch.float32) else value.float()

    def rule(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        cast_args = [cast(argument, value, dtype) for argument, value in zip(names, args, strict=False)]
        cast_kwargs = {argument: cast(argument, value, dtype) for argument, value in kwargs.items()}
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return getattr(torch.ops.saekernels, name)(*cast_args, **cast_kwargs)

    return rule
