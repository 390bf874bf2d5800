"""What the tests of the native backend share: the levels of this machine and the way back from a forced one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from saekernels.backends import cpu
from saekernels.backends.cpu import native

needs_native = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))
LEVELS = native.LOADED.supported_simd_levels().split(",") if native.LOADED is not None else []


@pytest.fixture(autouse=True)
def best_level_again() -> Iterator[None]:
    """Whatever level a test forces, the best one is back afterwards; for the files that import it."""
    yield
    if cpu.available() is None:
        cpu.set_simd_level("auto")
