"""Instructions of a call, as the processor counts them: the same on a busy machine as on an idle one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_THREADS = Path("/proc/self/task")
_SYSCALLS = {"x86_64": 298, "aarch64": 241}
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQ")  # perf_event_attr as the first kernels had it: 64 bytes
_EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 5, 1 << 6


class Event(NamedTuple):
    """What is counted: a type and a configuration of perf_event_open(2)."""

    type: int
    config: int


RETIRED = Event(0, 1)


def count(call: Callable[[], object], event: Event = RETIRED) -> int | None:
    """Instructions that one call takes outside the kernel, on all threads that exist before it.

    A call that has been warmed up starts no new ones. None where the system counts none: on many virtual machines,
    without leave (/proc/sys/kernel/perf_event_paranoid above 2), and on systems other than Linux.
    """
    with contextlib.ExitStack() as opened:
        try:
            counters = [opened.enter_context(_counter(int(thread.name), event)) for thread in _THREADS.iterdir()]
        except OSError:
            return None
        before = [_read(counter) for counter in counters]
        call()
        return sum(_read(counter) for counter in counters) - sum(before)


@contextlib.contextmanager
def _counter(thread: int, event: Event) -> Iterator[int]:
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise OSError(f"no system call is known for {platform.machine()}")
    flags = _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR
    attributes = _ATTRIBUTES.pack(event.type, _ATTRIBUTES.size, event.config, 0, 0, 0, flags, 0, 0, 0)
    any_cpu, no_group, close_on_exec = -1, -1, 8
    call = ctypes.CDLL(None, use_errno=True).syscall
    counter = call(ctypes.c_long(number), attributes, thread, any_cpu, no_group, ctypes.c_ulong(close_on_exec))
    if counter < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        yield counter
    finally:
        os.close(counter)


def _read(counter: int) -> int:
    return int.from_bytes(os.read(counter, 8), "little")
