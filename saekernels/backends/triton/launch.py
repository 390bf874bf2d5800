"""Starts kernels: on the right device and stream, in the interpreter, or, while recording, not at all."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"  # as triton.jit asked when the kernels were defined
INTERPRETER = 0  # the architecture of no GPU at all


class Launch(NamedTuple):
    """One kernel start: what `record` collects."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    maxnreg: int | None

    @property
    def name(self) -> str:
        """The kernel's function name."""
        return str(self.kernel.fn.__name__)


class _Recording(NamedTuple):
    architecture: int
    launches: list[Launch]
    entries_per_row: int


_recording: list[_Recording] = []


@contextlib.contextmanager
def record(architecture: int, entries_per_row: int = 64) -> Iterator[list[Launch]]:
    """Collect launches instead of starting them; for fake tensors of a GPU of `architecture` (80, 90, 100, 120).

    Args:
        entries_per_row: what stands for a number of codes that only data can tell.
    """
    _recording.append(_Recording(architecture, [], entries_per_row))
    try:
        yield _recording[-1].launches
    finally:
        _recording.pop()


def recording() -> bool:
    """Whether launches are collected instead of started."""
    return bool(_recording)


def architecture(device: torch.device) -> int:
    """Compute capability as 10 * major + minor; INTERPRETER for the CPU."""
    if _recording:
        return _recording[-1].architecture
    if device.type != "cuda":
        return INTERPRETER
    return _capability(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@functools.cache
def _multiprocessors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def multiprocessors(device: torch.device) -> int:
    """How many the device has; a stand-in where there is none."""
    if _recording or device.type != "cuda":
        return 132 if _recording else 2
    return _multiprocessors(device.index if device.index is not None else torch.cuda.current_device())


def read(numbers: Tensor, rows: int) -> list[int]:
    """Bring a few numbers to the host, which waits for the device; while recording, a stand-in for each."""
    if _recording:
        return [rows * _recording[-1].entries_per_row] + [0] * (numbers.numel() - 1)
    return [int(number) for number in numbers.tolist()]


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    device: torch.device,
    *,
    num_warps: int = 4,
    num_stages: int = 3,
    maxnreg: int | None = None,
    **arguments: Any,
) -> None:
    """Start `kernel` over `grid` on the device's current stream; an empty grid is no launch.

    maxnreg: registers that a thread may have, said to an assembler that would rather spill a few than use them.
    """
    if 0 in grid:
        return
    if _recording:
        _recording[-1].launches.append(Launch(kernel, grid, arguments, num_warps, num_stages, maxnreg))
        return
    # Contraction is asked for by name: its default changes between Triton versions, and bits with it.
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if maxnreg is not None:
        options["maxnreg"] = maxnreg
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](**arguments, **options)


def aligned(tensor: Tensor) -> bool:
    """Whether its address is a multiple of 16 bytes; a fake tensor has only an offset from one that is."""
    if _recording:
        return tensor.storage_offset() * tensor.element_size() % 16 == 0
    return tensor.data_ptr() % 16 == 0


def power_of_2(number: int, least: int = 1) -> int:
    """The smallest power of two that is at least both."""
    return max(least, int(triton.next_power_of_2(number)))
