"""What passes through a model's modules in a pass: looked at, cut short there, or replaced by planted values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.parallel.collectives import RankLostError


@dataclass(frozen=True)
class Seen:
    """One call of a module: its first floating-point input [..., d], and its output [..., V]."""

    module: nn.Module
    given: Tensor
    gave: Tensor


class _EndedError(Exception):
    """Ends a forward pass whose rest is not needed. An Exception, so that hooks which are always called are."""


def calls_to_width(model: nn.Module, run: Callable[[], Any], width: int, rows: int) -> list[Seen]:
    """Calls of parts of `model` during run() that give [..., width] of so many rows, in the order of their ends.

    A module that is called more than once is left out.
    """
    found: list[Seen] = []
    counts: dict[nn.Module, int] = {}

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        counts[module] = counts.get(module, 0) + 1
        given = _first_input(args, kwargs)
        if isinstance(output, Tensor) and output.shape[-1:] == (width,) and given is not None:
            given, gave = whole_tensor(given), whole_tensor(output)
            if rows_of(gave) == rows_of(given) == rows:
                found.append(Seen(module, given, gave))

    handles = [
        part.register_forward_hook(look, with_kwargs=True)
        for part in model.modules()
        if part is not model and not isinstance(part, nn.ModuleList | nn.ModuleDict)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [seen for seen in found if counts[seen.module] == 1]


def input_of(module: nn.Module, run: Callable[[], Any], ends: bool) -> Tensor:
    """What `module` is given during run(), [..., d]; `ends`: the pass ends there.

    Hooks that are on the module already, such as a splice's, come first.
    """
    held: list[Tensor] = []

    def hold(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = _first_input(args, kwargs)
        if given is not None:
            held[:] = [whole_tensor(given)]
            if ends:
                raise _EndedError

    handle = module.register_forward_pre_hook(hold, with_kwargs=True)
    try:
        run()
    except _EndedError:
        pass
    finally:
        handle.remove()
    if not held:
        raise RuntimeError(f"{type(module).__name__} was not called")
    return held[0]


def planted(module: nn.Module, run: Callable[[], Tensor], values: Tensor) -> Tensor | None:
    """What run() gives where `module` gives `values`, of its output's shape; None if the model fails with them."""

    def plant(module: nn.Module, args: Any, output: Any) -> Tensor:
        return values

    handle = module.register_forward_hook(plant)
    try:
        return run()
    except RankLostError:
        raise
    except Exception:  # a model may check its own values, in any way
        return None
    finally:
        handle.remove()


def may_end(model: nn.Module) -> bool:
    """Whether a pass can end early: not where hooks after a module's forward put its weights back in their place."""
    hooked = any(hasattr(part, "_hf_hook") for part in model.modules())
    return not hooked and not any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole_tensor(x: Tensor) -> Tensor:
    """The values of a tensor that may be cut over processes."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def rows_of(x: Tensor) -> int:
    """How many rows there are of the last dimension."""
    return x.numel() // max(1, x.shape[-1])


def _first_input(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
            return value
    return None


def precision(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter; float32 without any."""
    return next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
