"""The hooks of one splice, which torch.compile notices when they come and when they go."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Hooks:
    """Forward hooks on modules, in the order of their registration.

    Compiled code does not look whether a module without hooks has got some, so that a splice would quietly do nothing
    in a model that was compiled before. What it does look at is `forward` in a module's own __dict__, so there one is
    put beside the hooks: the module's own, and the code is compiled anew.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._marked: list[nn.Module] = []

    def before(self, module: nn.Module, hook: Callable[..., Any], **options: bool) -> None:
        """As `register_forward_pre_hook`."""
        self._handles.append(module.register_forward_pre_hook(hook, **options))
        self._mark(module)

    def after(self, module: nn.Module, hook: Callable[..., Any], **options: bool) -> None:
        """As `register_forward_hook`."""
        self._handles.append(module.register_forward_hook(hook, **options))
        self._mark(module)

    def remove(self) -> None:
        """Take all away; modules are as they were."""
        while self._handles:
            self._handles.pop().remove()
        while self._marked:
            _unmark(self._marked.pop())

    def _mark(self, module: nn.Module) -> None:
        if all(one is not module for one in self._marked):
            self._marked.append(module)
            _mark(module)


# module -> how many splices are on it, what was put into its __dict__, and what was there before.
_MARKS: WeakKeyDictionary[nn.Module, tuple[int, Any, Any]] = WeakKeyDictionary()


def _mark(module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        return
    count, put, before = _MARKS.get(module, (0, None, None))
    if not count:
        before = vars(module).get("forward")
        put = vars(module)["forward"] = module.forward if before is None else _another(before)
    _MARKS[module] = (count + 1, put, before)


def _unmark(module: nn.Module) -> None:
    if module not in _MARKS:
        return
    count, put, before = _MARKS.pop(module)
    if count > 1:
        _MARKS[module] = (count - 1, put, before)
    elif vars(module).get("forward") is put:  # else somebody has patched it since
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def _another(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def same(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return same
