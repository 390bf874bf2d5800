"""Where a splice reads and writes: site strings, and the activation among a module's inputs and outputs."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.errors import InputError, InputTypeError
from saekernels.splice.hooks import dotted, translated

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_END = re.compile(
    r"(?P<path>[^@\[\]>]+?)\s*(@(?P<side>input|output|module))?(\[(?P<part>head|stream|batch)=(?P<number>\d+)\])?"
)
_SPELLING = (
    "write 'path', 'path@input', 'path@module' or 'READ -> WRITE', each end perhaps with [head=N], [stream=N] or "
    "[batch=1]"
)


@dataclasses.dataclass(frozen=True)
class End:
    """One side of a module: where an activation is read, or where one is replaced.

    part: "head" (of [..., heads, width], or of heads side by side in the last dimension) or "stream" (of
    [streams, ..., width]), of which `number` is meant; "batch", where dimension `number` is that of the batch; None for
    the whole activation, whose first dimension is.
    """

    path: str
    module: nn.Module
    is_input: bool
    part: str | None = None
    number: int = 0


@dataclasses.dataclass(frozen=True)
class Site:
    """A place in a model: the end that is read and the end that is replaced, which may be the same."""

    name: str
    read: End
    write: End

    @property
    def same(self) -> bool:
        """Whether what is read is what is replaced."""
        return self.read == self.write

    @property
    def one_call(self) -> bool:
        """Whether one call of one module shows both ends."""
        return self.read.module is self.write.module


def _ends(name: str) -> list[re.Match[str] | None]:
    return [_END.fullmatch(end.strip()) for end in name.split("->")]


def has_two_ends(name: str) -> bool:
    """Whether a site string reads at one place and replaces at another, as transcoders do."""
    ends = _ends(name)
    return len(ends) > 1 or (ends[0] is not None and ends[0]["side"] == "module")


def resolve_site(model: nn.Module, name: str) -> Site:
    """The place that a site string means in ``model``.

    ``"READ -> WRITE"`` reads an activation at one end and replaces that at another. An end is ``"path"`` (or
    ``"path@output"``), the output of the module with that name in ``model.named_modules()`` or TransformerLens'
    ``model.hook_dict``, or ``"path@input"``, its input (also ``"path.output"`` and ``"path.input"``, as Gemma Scope 2
    writes, where no module has that name); ``"...[head=2]"`` is one attention head of it and
    ``"...[stream=0]"`` one of several residual streams, and ``"...[batch=1]"`` all of an activation [S, B, width]. One
    end alone is read and replaced; ``"path@module"`` is ``"path@input -> path"``. Hook points of TransformerLens are
    found in models of transformers, and modules of these in models of TransformerLens (hooks.py beside this file):
    `Site.read` and `Site.write` say what they resolved to.
    Raises ValueError for an unknown path (listing close names), another spelling, a container that is never
    called, a module inside a compiled one, where hooks are ignored, and an end that is read after it is replaced.
    """
    if not isinstance(name, str):
        raise TypeError(f"sites: a site is a string such as 'model.layers.3', got {type(name).__name__}")
    ends = _ends(name)
    found = [end for end in ends if end is not None]
    both = len(found) == 2 and any(end["side"] == "module" for end in found)
    if len(found) != len(ends) or len(ends) > 2 or both:
        raise ValueError(f"sites: {name!r} is not a site; {_SPELLING}")
    read, write = (_end(model, found[at], of) for at, of in ((0, "read"), (-1, "write")))
    if read.module is write.module and write.is_input and not read.is_input:
        raise ValueError(f"sites: {name!r} reads what a module gives and replaces what it is given, which comes before")
    return Site(name, read, write)


def _end(model: nn.Module, found: re.Match[str], of: str) -> End:
    path, side = found["path"], found["side"]
    modules = _named(model)
    is_input = side == "input" or (side == "module" and of == "read")
    ends = [(path, is_input), *(dotted(path) if side is None else ())]
    known = [end if end[0] in modules else translated(model, *end) for end in ends]
    path, is_input = next((end for end in known if end is not None), ends[0])
    _refuse_compiled(model, modules, path)
    if path not in modules:
        names = [name for name in modules if "_orig_mod" not in name.split(".")]
        raise ValueError(f"sites: {type(model).__name__} has no module {path!r}; {_close_names(path, names)}")
    module = modules[path]
    if isinstance(module, _CONTAINERS):
        raise ValueError(
            f"sites: {path!r} is a {type(module).__name__}, which is never called; name one of its members"
        )
    return End(path, module, is_input, found["part"], int(found["number"] or 0))


def _named(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by every name, TransformerLens' further names for its hook points included."""
    modules = dict(model.named_modules(remove_duplicate=False))
    aliases = getattr(model, "hook_dict", None)
    if isinstance(aliases, dict):
        modules.update((name, hook) for name, hook in aliases.items() if isinstance(hook, nn.Module))
    return modules


def _close_names(path: str, names: list[str]) -> str:
    if path.endswith("hook_normalized"):
        return "its norms give it times their gain: saekernels.fold_norm_gains changes a dictionary's encoders to that"
    longer = [name for name in names if name.endswith("." + path)]
    close = list(dict.fromkeys(longer + difflib.get_close_matches(path, names, n=5)))[:5]
    if close:
        return "close names: " + ", ".join(repr(name) for name in close)
    top = [name for name in names if name and "." not in name]
    return "its top-level modules: " + ", ".join(repr(name) for name in top)


def _refuse_compiled(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    """Compiled code does not look for hooks that came later: the splice would quietly do nothing."""
    parts = path.split(".")
    for end in range(len(parts) + 1):
        module = modules.get(".".join(parts[:end]), model)
        if (
            type(module).__name__ == "OptimizedModule"
            or getattr(module, "_compiled_call_impl", None) is not None
            or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        ):
            where = ".".join(parts[:end]) or "the model"
            raise ValueError(
                f"sites: {path!r} lies in {where}, which went through torch.compile and ignores hooks; "
                "splice the model as it was before compilation"
            )


def module_widths(module: nn.Module) -> tuple[int | None, int | None]:
    """Last dimension of a module's input and output where its class says so (linear, Conv1D, embedding, norms)."""
    shape = getattr(module, "normalized_shape", None)
    norm = shape[-1] if isinstance(shape, (tuple, list, torch.Size)) and shape else None
    width_in = _first_int(module, ("in_features", "nx"), norm)
    width_out = _first_int(module, ("out_features", "nf", "embedding_dim"), norm)
    return width_in, width_out


def _first_int(module: nn.Module, names: tuple[str, ...], default: int | None) -> int | None:
    found = (getattr(module, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), default)


def take_input(
    site: Site, end: End, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The activation among a call's arguments, and a function that gives the arguments with another in its place.

    It is the first positional argument, else the keyword that ``forward`` names first, else ``hidden_states``.
    """
    if args:
        return _activation(site, end, args[0], "input"), lambda new: ((new, *args[1:]), kwargs)
    first = next(iter(inspect.signature(end.module.forward).parameters), "hidden_states")
    key = first if first in kwargs else "hidden_states"
    if key not in kwargs:
        raise InputError(
            f"site {site.name!r}: {type(end.module).__name__} was called with neither a positional argument nor "
            f"{first!r}; got the keywords {sorted(kwargs)}"
        )
    return _activation(site, end, kwargs[key], f"input {key!r}"), lambda new: (args, {**kwargs, key: new})


def take_output(site: Site, end: End, output: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The activation in what a module returned, and a function that gives the same return value with another.

    It is the tensor itself, the first item of a tuple or list, or the first field of a ModelOutput or dict.
    """
    if isinstance(output, dict) and output:
        key = next(iter(output))
        return _activation(site, end, output[key], f"output {key!r}"), lambda new: _with_field(output, key, new)
    if isinstance(output, (tuple, list)) and output:
        value = _activation(site, end, output[0], "first output")
        make = getattr(type(output), "_make", type(output))
        return value, lambda new: make((new, *output[1:]))
    return _activation(site, end, output, "output"), lambda new: new


def _with_field(record: Any, key: str, new: Tensor) -> Any:
    if dataclasses.is_dataclass(type(record)):
        return dataclasses.replace(record, **{key: new})
    return {**record, key: new}


def _activation(site: Site, end: End, value: Any, which: str) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0:
        return value
    got = f"a {value.dtype} tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputTypeError(
        f"site {site.name!r}: the {which} of {type(end.module).__name__} is {got}; "
        "a floating-point tensor [..., width] is needed"
    )


def part_of(site: Site, end: End, x: Tensor, width: int | None) -> Tensor:
    """The activation at an end as [..., width], without its heads or streams where the end names one of them, and with
    the batch first.

    All heads, [B, S, heads, head_width], are side by side where `width` is that of all of them. Raises InputError where
    the activation has no such head or stream.
    """
    if end.part is None:
        if x.ndim == 4 and x.shape[-1] != width and x.shape[-2] * x.shape[-1] == width:
            return x.flatten(-2)
        return x
    if end.part == "batch":
        if not 0 < end.number < x.ndim - 1:
            raise InputError(f"site {site.name!r}: an activation of shape {tuple(x.shape)} has no batch {end.number}")
        return x.movedim(end.number, 0)
    axis, x = _parts(site, end, x, width)
    return x.select(axis, end.number)


def put_part(site: Site, end: End, x: Tensor, new: Tensor) -> Tensor:
    """`x` with `new` in the place of what `part_of` gave."""
    if end.part is None:
        return new.reshape(x.shape)
    if end.part == "batch":
        return new.movedim(0, end.number)
    axis, parts = _parts(site, end, x, new.shape[-1])
    return torch.select_scatter(parts, new, axis, end.number).reshape(x.shape)


def _parts(site: Site, end: End, x: Tensor, width: int | None) -> tuple[int, Tensor]:
    """The axis of heads or streams, and the activation with such an axis."""
    axis = 0 if end.part == "stream" else -2
    if x.ndim == 3 and axis == -2 and width is not None and x.shape[-1] % width == 0:
        x = x.unflatten(-1, (-1, width))
    if x.ndim != 4 or end.number >= x.shape[axis]:
        raise InputError(
            f"site {site.name!r}: an activation of shape {tuple(x.shape)} has no {end.part} {end.number}"
            + (f" of width {width}" if width is not None and axis == -2 else "")
        )
    return axis, x


def require_width(site: Site, what: str, expected: int | None, got: int | None, where: str) -> None:
    """InputError, a ValueError, unless the two widths agree; None means not known."""
    if expected is not None and got is not None and expected != got:
        raise InputError(f"site {site.name!r}: expected width {expected} ({what}), got {got} ({where})")
