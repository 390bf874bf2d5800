"""pytest benchmarks -n0 --benchmark-only: bench_ops.py, and nothing of what `pytest` alone runs."""

from __future__ import annotations

import pytest


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Benchmarks take turns: `-n auto`, which the tests' settings ask for, means none beside this one."""
    return 0
