"""The hooks of one splice, which torch.compile notices when they come and when they go."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saekernels.errors import InputError
from saekernels.splice.sites import Site, take_input, take_output

Replace = Callable[[Tensor, Tensor], Tensor]


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

    def at_site(self, site: Site, replace: Replace) -> None:
        """Have what a site's module gives or takes replaced by what `replace` makes of (what is read, that)."""
        seen: list[Tensor] = []  # what was read and not yet answered, where another module shows it

        def see_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[:] = [take_input(site, site.read, args, kwargs)[0]]

        def see_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen[:] = [take_output(site, site.read, output)[0]]

        def read(target: Tensor) -> Tensor:
            if site.same:
                return target
            if not seen:
                raise InputError(
                    f"site {site.name!r}: {site.write.path!r} came before {site.read.path!r} in this forward pass, so "
                    "there was nothing to read"
                )
            return seen.pop()

        def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            target, put = take_input(site, site.write, args, kwargs)
            return put(replace(read(target), target))

        def on_output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            target, put = take_output(site, site.write, output)
            if site.one_call and site.read.is_input:
                return put(replace(take_input(site, site.read, args, kwargs)[0], target))
            if site.one_call:
                return put(replace(target, target))
            return put(replace(read(target), target))

        if not site.one_call and site.read.is_input:
            self.before(site.read.module, see_input, with_kwargs=True)
        elif not site.one_call:
            self.after(site.read.module, see_output)
        if site.write.is_input:
            self.before(site.write.module, on_input, with_kwargs=True)
        else:
            self.after(site.write.module, on_output, with_kwargs=True)

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
