"""The tools that are served, and the adapter of each, imported only once the tool itself is."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from saekernels.adapters.errors import NotAccelerated
from saekernels.errors import first_line

TOOLS = ("sae_lens", "sparsify", "dictionary_learning", "sae_bench")
CLIENTS = ("circuit_tracer",)
"""Tools whose objects hold transcoders and a model, and are no SAEs."""


def installed(tool: str) -> bool:
    """Whether there is something to import by this name; not whether it imports."""
    try:
        return importlib.util.find_spec(tool) is not None
    except ValueError:  # it is imported, and hides where from
        return tool in sys.modules


def adapter(tool: str) -> ModuleType:
    """The module that knows this tool's classes. Raises NotAccelerated, with the reason, where the tool cannot be used.

    Whatever an import raises counts: dictionary_learning 0.1 without nnsight raises ModuleNotFoundError.
    """
    try:
        return importlib.import_module(f"saekernels.adapters.{tool}")
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise NotAccelerated(f"{tool} is installed but does not import as it is known here: {reason}") from error


def adapter_of(module: object) -> ModuleType | None:
    """The adapter of the tool that made this object; a tool that was never imported made none."""
    roots = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
    for name in (*TOOLS, *CLIENTS):
        if name in roots and name in sys.modules:
            found = adapter(name)
            if found.known(module):
                return found
    return None
