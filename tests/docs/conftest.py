"""Fixtures of the documentation's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from places import TOOLS


@pytest.fixture
def example_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by plain names; the names are gone again after the test."""
    monkeypatch.syspath_prepend(str(TOOLS))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for path in TOOLS.glob("*.py"):
        sys.modules.pop(path.stem, None)
