"""Peak memory of a call, and what the machine has left."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 2**20
METHOD = "peak resident memory (VmHWM, reset through /proc/self/clear_refs) above that before the first call, in MiB"
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def method() -> str:
    """How peaks are measured here, or why not."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError as error:
        return f"not measured: {_CLEAR_REFS} cannot be written ({error.strerror})"
    return METHOD


def peak_of(call: Callable[[], Any]) -> tuple[Any, float | None]:
    """(what the call returned, the MiB it needed beyond what was there before); None where that cannot be measured.

    The result itself counts. So does what a library allocates at its first use and keeps.
    """
    _return_free_memory()
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return call(), None
    before = _status("VmRSS")
    result = call()
    return result, max(_status("VmHWM") - before, 0) / MIB


def available() -> int | None:
    """Bytes that can be allocated without swapping, as the kernel and the control group say; None if unknown."""
    known = [bytes_ for bytes_ in (_meminfo(), _control_group()) if bytes_ is not None]
    return min(known) if known else None


def _return_free_memory() -> None:
    # Freed memory that malloc keeps would be used again unseen.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    return _kilobytes(Path("/proc/self/status"), field) or 0


def _meminfo() -> int | None:
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _kilobytes(path: Path, field: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def _control_group() -> int | None:
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):
        return None
