"""The ops under torch.func: what a transform asks of an op is its gradient, and what a batch of calls gives.

torch's bridge for ops written in Python (`register_autograd`) answers neither, so where a transform is active a call
goes through an autograd.Function, made of the same record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def transforming() -> bool:
    """Whether a transform of torch.func comes next: vmap, grad, vjp, jvp or one that is made of them.

    functionalize is none of them: it takes ops as they are, and knows no autograd.Function.
    """
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    innermost = torch._C._functorch.peek_interpreter_stack()
    return innermost is not None and innermost.key() != torch._C._functorch.TransformType.Functionalize


def transformed(name: str, op: Any, dispatched: Callable[..., Any]) -> Callable[..., Any]:
    """What calls `dispatched`, the op of the record `op`, with all transforms that are active."""
    fields = dataclasses.fields(op)
    positional = [field for field in fields if not field.kw_only]
    options = [field for field in fields if field.kw_only]
    count = len(positional)

    def named(args: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip([field.name for field in options], args[count:], strict=True))

    def transformed(*args: Any) -> Any:
        apply: Any = Transformed.apply
        return apply(*args)

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return dispatched(*args[:count], **named(args))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            op(*inputs[:count], **named(inputs)).save(ctx, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            found = op.backward(ctx, *grads)[:count]
            return (*found, *[None] * (len(fields) - len(found)))

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            if op.DYNAMIC_SHAPE:
                raise NotImplementedError(
                    f"{name}: got a batch by vmap, whose calls would each have a number of entries of their own; call "
                    "it once, with the batch among the leading dimensions of x"
                )
            if not info.batch_size:
                raise NotImplementedError(f"{name}: got a batch of size 0 by vmap, need at least 1")
            at_front = [arg if dim is None else arg.movedim(dim, 0) for arg, dim in zip(args, in_dims, strict=True)]
            batched = [dim is not None for dim in in_dims]
            if _all_rows(op, fields, args, batched):
                return _with_dims(transformed(*at_front))
            each = [
                transformed(*[arg[i] if one else arg for arg, one in zip(at_front, batched, strict=True)])
                for i in range(info.batch_size)
            ]
            if isinstance(each[0], Tensor):
                return torch.stack(each), 0
            return _with_dims(tuple(torch.stack(parts) for parts in zip(*each, strict=True)))

    def call(*args: Any, **kwargs: Any) -> Any:
        rest = (*positional[len(args) :], *options)
        return transformed(*args, *[kwargs.get(field.name, field.default) for field in rest])

    return call


def _all_rows(op: Any, fields: tuple[Any, ...], args: tuple[Any, ...], batched: list[bool]) -> bool:
    """Whether all that is batched are arguments with any number of leading dimensions, and these with one more."""
    for field, arg, one in zip(fields, args, batched, strict=True):
        rows = field.name in op.ROWS and isinstance(arg, Tensor) and arg.dim() > 0
        if rows != one:
            return False
    return True


def _with_dims(outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return outputs, (0,) * len(outputs)
