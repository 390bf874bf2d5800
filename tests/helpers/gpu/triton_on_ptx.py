"""Runs launches of Triton kernels on the machine for PTX: what the compiler emits for a GPU, on a CPU."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest has it

from ptx.machine import launch as emulate  # noqa: E402
from ptx.memory import Memory, TensorMap  # noqa: E402
from saekernels.backends.triton.launch import Launch, record  # noqa: E402
from triton_aot import binary, flat, identity, specialise  # noqa: E402
from triton_cases import module  # noqa: E402

SWIZZLES = (0, 32, 64, 128)
_binaries: dict[tuple[int, str], Any] = {}


class Running(list[Launch]):
    """Launches that are run as they are recorded, so that what torch does in between finds their results."""

    def __init__(self, architecture: int) -> None:
        super().__init__()
        self.architecture = architecture

    def append(self, launch: Launch) -> None:
        """Run it too."""
        super().append(launch)
        run(launch, self.architecture)


def small_card() -> Any:
    """While it lasts a GPU has two multiprocessors, so that persistent programs have several tiles."""
    return mock.patch.object(module("launch"), "multiprocessors", return_value=2)


@contextmanager
def running(architecture: int) -> Iterator[Running]:
    """Runs what the backend launches while this lasts, as for an architecture, 80 or 90."""
    launches = Running(architecture)
    with record(architecture), small_card():
        module("launch")._recording[-1] = module("launch")._recording[-1]._replace(launches=launches)
        yield launches


def run(launch: Launch, architecture: int, edit: Callable[[str], str] = lambda ptx: ptx) -> None:
    """Run a launch whose tensors are the CPU's, and leave in them what a GPU would.

    Args:
        edit: makes of the kernel's PTX what is run.
    """
    memory = Memory()
    tensors = {tensor.untyped_storage().data_ptr(): tensor for tensor in _tensors(launch)}
    addresses = {pointer: memory.put(_bytes(tensor).numpy()) for pointer, tensor in tensors.items()}
    key = architecture, identity(launch, architecture)
    made = _binaries[key] = _binaries[key] if key in _binaries else binary(launch, architecture)
    given, signature = dict(flat(launch.arguments)), flat(specialise(launch, architecture)[0])
    described = iter(made.metadata.tensordesc_meta or [])
    parameters = [
        parameter
        for name, kind in signature
        if kind != "constexpr"
        for parameter in _parameters(given[name], addresses, memory, described)
    ]
    text = edit(made.asm["ptx"])
    threads = int(re.findall(r"\.reqntid\s+(\d+)", text)[0])
    emulate(text, memory, launch.grid, threads, made.metadata.shared, parameters)
    for pointer, tensor in tensors.items():
        content = _bytes(tensor)
        content.copy_(torch.from_numpy(memory.bytes[addresses[pointer] :][: len(content)]))


def _tensors(launch: Launch) -> list[Tensor]:
    values = [value for _, value in flat(launch.arguments)]
    return [value.base if _described(value) else value for value in values if _in_memory(value)]


def _described(value: Any) -> bool:
    """Whether it is a tensor descriptor, of Triton or of Gluon."""
    return type(value).__name__ == "TensorDescriptor"


def _in_memory(value: Any) -> bool:
    return isinstance(value, Tensor) or _described(value)


def _parameters(value: Any, addresses: dict[int, int], memory: Memory, described: Any) -> list[int]:
    """A parameter for each argument, but for a descriptor its map, shape and strides."""
    if _described(value):
        (base,) = _parameters(value.base, addresses, memory, described)
        meta = next(described)
        tensor_map = TensorMap(
            base,
            tuple(value.shape),
            tuple(stride * meta["elem_size"] for stride in value.strides),
            tuple(meta["block_size"]),
            meta["elem_size"],
            SWIZZLES[meta["swizzle"]],
        )
        return [memory.put_map(tensor_map), *value.shape, *value.strides]
    if isinstance(value, float):
        return [int(np.float32(value).view(np.uint32))]
    if not isinstance(value, Tensor):
        return [int(value)]
    return [addresses[value.untyped_storage().data_ptr()] + value.storage_offset() * value.element_size()]


def _bytes(tensor: Tensor) -> Tensor:
    """The whole storage of a tensor."""
    return torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage())
