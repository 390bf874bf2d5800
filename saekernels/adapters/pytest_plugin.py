"""pytest -p saekernels.adapters.pytest_plugin: runs any test suite with the swap switched on, and says so."""

from __future__ import annotations

from typing import Any

from saekernels.adapters import TOOLS
from saekernels.adapters.swap import switch_off, switch_on

_on: list[str] = []
_left_out: list[str] = []


def pytest_configure(config: Any) -> None:
    """Accelerate what the installed tools make from here on."""
    on, left_out = switch_on(TOOLS)
    _on[:], _left_out[:] = on, map(str, left_out)


def pytest_unconfigure(config: Any) -> None:
    """Leave the tools as they were."""
    switch_off()


def pytest_report_header(config: Any) -> list[str]:
    """The lines of pytest's header that say whose objects are accelerated, and whose cannot be."""
    tools = ", ".join(_on) or ("no tool" if _left_out else "no tool (none is installed)")
    told = [f"saekernels: left out: {reason}" for reason in _left_out]
    return [f"saekernels: objects of {tools} are accelerated as they are made", *told]
