"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

import cli


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Inputs of every kind that nothing is wrong with, by name. Do not change them."""
    return cli.inputs(tmp_path_factory.mktemp("good"))
