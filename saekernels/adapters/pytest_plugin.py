"""pytest -p saekernels.adapters.pytest_plugin: runs any test suite with the swap switched on, and says so."""

from __future__ import annotations

from typing import Any

from saekernels.adapters import TOOLS
from saekernels.adapters.swap import switch_off, switch_on

_on: list[str] = []


def pytest_configure(config: Any) -> None:
    """Accelerate what the installed tools make from here on."""
    _on[:] = switch_on(TOOLS)


def pytest_unconfigure(config: Any) -> None:
    """Leave the tools as they were."""
    switch_off()


def pytest_report_header(config: Any) -> str:
    """The line of pytest's header that says whose objects are accelerated."""
    return f"saekernels: objects of {', '.join(_on) or 'no tool (none is installed)'} are accelerated as they are made"
