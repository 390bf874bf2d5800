"""The swap for code that makes its own SAEs: every object that a known tool makes from now on is accelerated.

What is not served (a class of its own, a training SAE whose maths is dense) stays as it is; `saekernels.accelerate`
says why.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.patch import install, state_of
from saekernels.adapters.tools import TOOLS, adapter, installed

_ORIGINALS: dict[type, Callable[..., None] | None] = {}
"""Classes that are switched over, with what their own __dict__ had as __init__, or None."""


def switch_on(tools: tuple[str, ...]) -> tuple[list[str], list[NotAccelerated]]:
    """Accelerate whatever the installed ones of these tools make.

    Returns their names, and why others are left out, which are installed and do not import.
    """
    on, left_out = [], []
    for name in filter(installed, tools):
        try:
            own = adapter(name)
        except NotAccelerated as error:
            left_out.append(error)
            continue
        for kind in own.classes():
            if kind not in _ORIGINALS:
                _ORIGINALS[kind] = kind.__dict__.get("__init__")
                kind.__init__ = _accelerating(kind, kind.__init__, own)
        on.append(name)
    return on, left_out


def switch_off() -> None:
    """Undo `switch_on`; objects that were made meanwhile stay accelerated."""
    for kind, original in _ORIGINALS.items():
        if original is None:
            type.__delattr__(kind, "__init__")
        else:
            type.__setattr__(kind, "__init__", original)
    _ORIGINALS.clear()


@contextlib.contextmanager
def swapped(*tools: str) -> Iterator[list[str]]:
    """Everything that these tools (all known ones by default) make inside is accelerated; the names of the installed.

    A tool that is installed but does not import is left out with a warning that says why; one that is named raises
    NotAccelerated. Raises ValueError for a tool that is not known, RuntimeError inside of another `swapped`.

    ```python
    with saekernels.swapped():
        sae = SAE.load_from_disk(path)     # accelerated
    ```
    """
    unknown = sorted(set(tools) - set(TOOLS))
    if unknown:
        raise ValueError(f"tools: got {unknown[0]!r}, need some of {', '.join(TOOLS)}")
    if _ORIGINALS:
        raise RuntimeError("swapped: it is on already")
    try:
        on, left_out = switch_on(tools or TOOLS)
        if tools and left_out:
            raise left_out[0]
        for reason in left_out:
            warnings.warn(f"swapped: left out: {reason}", stacklevel=3)
        yield on
    finally:
        switch_off()


def _accelerating(kind: type, original: Any, own: Any) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        # Subclasses finish their own __init__ first; those that are not known never come here as themselves.
        if type(self) is kind and state_of(self) is None:
            with contextlib.suppress(NotAccelerated):
                install(self, own.plan(self))

    return init
