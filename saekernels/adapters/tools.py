"""The tools that are served, and the adapter of each, imported only once the tool itself is."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from torch import nn

TOOLS = ("sae_lens", "sparsify", "dictionary_learning", "sae_bench")


def adapter(tool: str) -> ModuleType:
    """The module that knows this tool's classes."""
    return importlib.import_module(f"saekernels.adapters.{tool}")


def adapter_of(module: nn.Module) -> ModuleType | None:
    """The adapter of the tool that made this object; a tool that was never imported made none."""
    roots = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
    for name in TOOLS:
        if name in roots and name in sys.modules:
            found = adapter(name)
            if found.known(module):
                return found
    return None
