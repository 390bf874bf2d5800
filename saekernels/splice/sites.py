"""Where a splice reads and writes: site strings, and the activation among a module's inputs and outputs."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_SUFFIXES = {"": (False, False), "@input": (True, True), "@module": (True, False)}
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclasses.dataclass(frozen=True)
class Site:
    """A place in a model: which module, and which side of it is read and which is replaced."""

    name: str
    module: nn.Module
    reads_input: bool
    writes_input: bool


def resolve_site(model: nn.Module, name: str) -> Site:
    """The place that a site string means in ``model``.

    ``"path"`` is the output of the module with that name in ``model.named_modules()`` or TransformerLens'
    ``model.hook_dict``, ``"path@input"`` is its input,
    and ``"path@module"`` reads its input and replaces its output.
    Raises ValueError for an unknown path (listing close names), an unknown suffix, a container that is never
    called, and a module inside a compiled one, where hooks are ignored.
    """
    if not isinstance(name, str):
        raise TypeError(f"sites: a site is a string such as 'model.layers.3', got {type(name).__name__}")
    path, at, side = name.partition("@")
    if at + side not in _SUFFIXES or not path:
        raise ValueError(f"sites: {name!r} is not a site; write 'path', 'path@input' or 'path@module'")
    modules = _named(model)
    _refuse_compiled(model, modules, path)
    if path not in modules:
        names = [name for name in modules if "_orig_mod" not in name.split(".")]
        raise ValueError(f"sites: {type(model).__name__} has no module {path!r}; {_close_names(path, names)}")
    module = modules[path]
    if isinstance(module, _CONTAINERS):
        raise ValueError(
            f"sites: {path!r} is a {type(module).__name__}, which is never called; name one of its members"
        )
    return Site(name, module, *_SUFFIXES[at + side])


def _named(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by every name, TransformerLens' further names for its hook points included."""
    modules = dict(model.named_modules(remove_duplicate=False))
    aliases = getattr(model, "hook_dict", None)
    if isinstance(aliases, dict):
        modules.update((name, hook) for name, hook in aliases.items() if isinstance(hook, nn.Module))
    return modules


def _close_names(path: str, names: list[str]) -> str:
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


def take_input(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The activation among a call's arguments, and a function that gives the arguments with another in its place.

    It is the first positional argument, else the keyword that ``forward`` names first, else ``hidden_states``.
    """
    if args:
        return _activation(site, args[0], "input"), lambda new: ((new, *args[1:]), kwargs)
    first = next(iter(inspect.signature(site.module.forward).parameters), "hidden_states")
    key = first if first in kwargs else "hidden_states"
    if key not in kwargs:
        raise ValueError(
            f"site {site.name!r}: {type(site.module).__name__} was called with neither a positional argument nor "
            f"{first!r}; got the keywords {sorted(kwargs)}"
        )
    return _activation(site, kwargs[key], f"input {key!r}"), lambda new: (args, {**kwargs, key: new})


def take_output(site: Site, output: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The activation in what a module returned, and a function that gives the same return value with another.

    It is the tensor itself, the first item of a tuple or list, or the first field of a ModelOutput or dict.
    """
    if isinstance(output, dict) and output:
        key = next(iter(output))
        return _activation(site, output[key], f"output {key!r}"), lambda new: _with_field(output, key, new)
    if isinstance(output, (tuple, list)) and output:
        value = _activation(site, output[0], "first output")
        make = getattr(type(output), "_make", type(output))
        return value, lambda new: make((new, *output[1:]))
    return _activation(site, output, "output"), lambda new: new


def _with_field(record: Any, key: str, new: Tensor) -> Any:
    if dataclasses.is_dataclass(type(record)):
        return dataclasses.replace(record, **{key: new})
    return {**record, key: new}


def _activation(site: Site, value: Any, which: str) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0:
        return value
    got = f"a {value.dtype} tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(
        f"site {site.name!r}: the {which} of {type(site.module).__name__} is {got}; "
        "a floating-point tensor [..., width] is needed"
    )


def fold_heads(x: Tensor, width: int | None) -> Tensor:
    """[B, S, heads, head_width] as [B, S, heads * head_width] where that is the width wanted; else x as it is."""
    if x.ndim == 4 and x.shape[-1] != width and x.shape[-2] * x.shape[-1] == width:
        return x.flatten(-2)
    return x


def require_width(site: Site, what: str, expected: int | None, got: int | None, where: str) -> None:
    """ValueError unless the two widths agree; None means not known."""
    if expected is not None and got is not None and expected != got:
        raise ValueError(f"site {site.name!r}: expected width {expected} ({what}), got {got} ({where})")
