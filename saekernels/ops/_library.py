"""How an op reaches torch: one record per op, which its schema, kernel, shape function and gradient come from.

`Library.define` and `impl` rather than `torch.library.custom_op`: the same contract with less wrapping per call.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from saekernels.ops import _check
from saekernels.ops._direct import direct
from saekernels.ops._transforms import transformed, transforming

NAMESPACE = "saekernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
# saekernels::name as ops call one another, gradients among them: with whatever transforms of torch.func are active.
OPS = types.SimpleNamespace()
AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


class Op:
    """One call of an op. Its fields are the schema's arguments, those after KW_ONLY by keyword, in the schema's order.

    A subclass is a dataclass whose annotations, and that of what `compute` returns, are the schema's types. One without
    `empty` is made of other ops, whose gradients, shapes and autocast are its own.

    Attributes:
        MATRICES: the arguments that an autocast region casts to its dtype.
        DYNAMIC_SHAPE: whether an output's shape depends on data.
        ROWS: the arguments with any leading dimensions, which the outputs have too: a batch of them is one call.
    """

    __slots__ = ()
    MATRICES: ClassVar[tuple[str, ...]] = ()
    DYNAMIC_SHAPE: ClassVar[bool] = False
    ROWS: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raise TypeError or ValueError for arguments of the wrong dtype, shape or range; they are in one place."""

    def compute(self) -> Any:
        """The outputs, on every device."""
        raise NotImplementedError

    def at_once(self) -> Any:
        """The same where no op that it is made of needs the dispatcher either."""
        return self.compute()

    def empty(self) -> Any:
        """Outputs of the right shapes and dtypes, for fake tensors."""
        raise NotImplementedError

    def save(self, ctx: Any, output: Any) -> None:
        """Keep in `ctx` what `backward` needs."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """The gradient of each positional argument; trailing ones may be more than were given."""
        raise NotImplementedError


def register(name: str, op: type[Op]) -> Callable[..., Any]:
    """Register saekernels::`name`. Returns what calls it: f(*tensors, **options), past the dispatcher where it may be.

    TypeError for a tensor or an option of another type, NotImplementedError for a forward-mode tangent.
    """
    composite = op.empty is Op.empty
    tags = [torch.Tag.pt2_compliant_tag] + [torch.Tag.flexible_layout] * (not composite)
    if op.DYNAMIC_SHAPE:
        tags.append(torch.Tag.dynamic_output_shape)
    LIBRARY.define(name + schema(op), tags=tuple(tags))

    names = [field.name for field in _fields(op)]
    tensor_names = [field.name for field in _fields(op) if str(field.type).startswith("Tensor")]
    required = [(at, field.name) for at, field in enumerate(_fields(op)) if field.type == "Tensor"]
    kinds = {field.name: _KINDS[field.type] for field in _fields(op) if field.type in _KINDS}

    def checked(*args: Any, **kwargs: Any) -> Op:
        made = op(*args, **kwargs)
        held = {tensor: getattr(made, tensor) for tensor in tensor_names}
        _check.in_one_place(**held)
        _check.no_tangents(**held)
        made.check()
        return made

    def kernel(*args: Any, **kwargs: Any) -> Any:
        return checked(*args, **kwargs).compute()

    def fake(*args: Any, **kwargs: Any) -> Any:
        return checked(*args, **kwargs).empty()

    # By keywords; torch leaves keyword_only_inputs out where a schema has none.
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: Any, keyword_only_inputs: dict[str, Any] | None = None
    ) -> None:
        op(*inputs, **(keyword_only_inputs or {})).save(ctx, output)

    LIBRARY.impl(name, kernel, "CompositeImplicitAutograd" if composite else "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    if not composite:
        torch.library.register_fake(qualified, fake, lib=LIBRARY)
    if op.backward is not Op.backward:
        library: Any = _RefusingForwardMode(names)
        torch.library.register_autograd(qualified, op.backward, setup_context=setup_context, lib=library)
    for device, key in AUTOCAST_DEVICES.items() if op.MATRICES else ():
        LIBRARY.impl(name, _autocast_rule(name, op, device, key), key)

    dispatched = kernel if composite else getattr(getattr(torch.ops, NAMESPACE), name)
    under_transforms = dispatched if composite else transformed(name, op, dispatched)

    def inner(*args: Any, **kwargs: Any) -> Any:
        return (under_transforms if transforming() else dispatched)(*args, **kwargs)

    setattr(OPS, name, inner)

    def call(*tensors: Any, **options: Any) -> Any:
        for option, value in options.items():
            kind, at_once = kinds[option]
            if type(value) not in at_once:
                options[option] = _check.scalar(option, value, kind)
        for at, tensor in required:
            if tensors[at] is None:
                _check.tensor(tensor, None)
        if direct(tensors):
            made = op(*tensors, **options)
            made.check()
            return made.at_once()
        _check.tensors(**dict(zip(names, tensors, strict=False)))
        return inner(*tensors, **options)

    return call


class _RefusingForwardMode:
    """The library, as torch registers a gradient in it: the kernel looks for tangents first, and would drop them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def impl(self, name: str, kernel: Callable[..., Any], key: str, **options: Any) -> None:
        """As torch.library.Library; `kernel` is also given the set of dispatch keys."""

        def refusing(keys: Any, *args: Any, **kwargs: Any) -> Any:
            if forward_ad._current_level >= 0:
                _check.no_tangents(**dict(zip(self._names, args, strict=False)))
            return kernel(keys, *args, **kwargs)

        LIBRARY.impl(name, refusing, key, **options)


# By annotation: the type of an option, and the types that need no second look (an int has a range).
_KINDS: dict[Any, tuple[type, tuple[type, ...]]] = {
    "bool": (bool, (bool,)),
    "str": (str, (str,)),
    "str | None": (str, (str, type(None))),
    "float | None": (float, (float, type(None))),
    "int": (int, ()),
    "int | SymInt": (int, ()),
}


def _fields(op: type[Op]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(op)  # type: ignore[arg-type] # every subclass is one


def schema(op: type[Op]) -> str:
    """Everything behind the name, e.g. "(Tensor x, *, SymInt k) -> (Tensor, Tensor)"."""
    arguments = []
    for field in _fields(op):
        if field.kw_only and "*" not in arguments:
            arguments.append("*")
        kind = "SymInt" if field.type == "int | SymInt" else str(field.type).replace(" | None", "?")
        default = "" if field.default is dataclasses.MISSING else f"={field.default!r}"
        arguments.append(f"{kind} {field.name}{default}")
    returned = op.compute.__annotations__["return"]
    returned = f"({returned[6:-1]})" if returned.startswith("tuple[") else returned
    return f"({', '.join(arguments)}) -> {returned}"


def padded(values: Sequence[Any], size: int, fill: Any = None) -> tuple[Any, ...]:
    """`values` with `fill` appended up to `size`: torch drops trailing arguments left at their default."""
    return (*values, *[fill] * (size - len(values)))


def rows_of(matrix: Tensor) -> Tensor:
    """[..., d] as [T, d]."""
    return matrix if matrix.dim() == 2 else matrix.reshape(-1, matrix.shape[-1])


def reshaped(fresh: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor that nobody else holds, in another shape of as many elements; no view, so it may be changed in place."""
    return fresh if fresh.shape == shape else fresh.resize_(shape)


def values_dtype(dtype: torch.dtype, wide: bool) -> torch.dtype:
    """The dtype of an op's values: that of its inputs, or, `wide`, that in which it accumulates."""
    return torch.promote_types(dtype, torch.float32) if wide else dtype


def _autocast_rule(name: str, op: type[Op], device: str, key: str) -> Callable[..., Any]:
    """As torch.nn.functional.linear: matrices take the region's dtype, vectors may stay float32, float64 stays."""
    names = [field.name for field in _fields(op)]
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(argument: str, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
            return value
        if argument in op.MATRICES:
            return value.to(dtype)
        return value if value.dtype in (dtype, torch.float32) else value.float()

    def rule(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        cast_args = [cast(argument, value, dtype) for argument, value in zip(names, args, strict=False)]
        cast_kwargs = {argument: cast(argument, value, dtype) for argument, value in kwargs.items()}
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return getattr(torch.ops.saekernels, name)(*cast_args, **cast_kwargs)

    return rule
