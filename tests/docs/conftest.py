"""Fixtures of the documentation's tests."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from places import TOOLS

REAL_MODEL = TOOLS.parent / "real_model"


@pytest.fixture
def example_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by plain names; the names are gone again after the test."""
    monkeypatch.syspath_prepend(str(TOOLS))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for path in TOOLS.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def real_model_modules(example_modules: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of tools/real_model, which stand on the bundled example's."""
    monkeypatch.syspath_prepend(str(REAL_MODEL))
    yield
    for path in REAL_MODEL.glob("*.py"):
        if path.stem != "__main__":
            sys.modules.pop(path.stem, None)


@pytest.fixture
def real_model_script(real_model_modules: None) -> dict[str, Any]:
    """The names of its command."""
    return runpy.run_path(str(REAL_MODEL / "__main__.py"), run_name="real_model")
