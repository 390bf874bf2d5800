"""What an op starts on a GPU, in order: its kernels, torch's own, and where it would ask the device for data."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saekernels.backends import registry
from saekernels.backends import triton as backend
from saekernels.backends.triton import launch
from saekernels.ops import _library
from saekernels.ops.sparse_maps import uniform_offsets

decoding = import_module("saekernels.ops.decode")
encode_threshold = import_module("saekernels.backends.triton.encode.encode_threshold")

# Nothing is computed: what only makes room, or says what is there in another way.
ROOM = {"empty", "new_empty", "empty_strided", "empty_like", "detach", "_reshape_alias", "resize_", "_unsafe_view"}
# Data that the host waits for.
ASKS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "item",
    "repeat_interleave",
}


def _same(value: Any, *asked: object) -> Any:
    """No mock, whose calls would count."""
    return value


@contextlib.contextmanager
def on_a_gpu(architecture: int) -> Iterator[None]:
    """Ops of CPU tensors go the way of those of a GPU of `architecture`, to the Triton backend."""
    rooms = [room for name, room in sys.modules.items() if name.startswith("saekernels.backends.triton")]
    made = torch.zeros(1, dtype=torch.int32)
    with contextlib.ExitStack() as stack:
        for room in rooms:
            if hasattr(room, "architecture"):
                stack.enter_context(mock.patch.object(room, "architecture", partial(_same, architecture)))
            if hasattr(room, "multiprocessors"):
                stack.enter_context(mock.patch.object(room, "multiprocessors", partial(_same, 132)))
            if hasattr(room, "counter"):  # made once for a process
                stack.enter_context(mock.patch.object(room, "counter", partial(_same, made)))
        stack.enter_context(mock.patch.object(registry, "select", partial(_same, backend)))
        stack.enter_context(mock.patch.object(decoding, "_plain_offsets", uniform_offsets))  # none kept on a GPU
        stack.enter_context(mock.patch.object(backend, "CHECKS_ENTRIES", True))  # data are read on the CPU alone
        yield


class _Ops(TorchDispatchMode):
    """Notes torch's kernels among those of `kernels`, which are noted as they are started."""

    def __init__(self, kernels: list[launch.Launch]) -> None:
        super().__init__()
        self.kernels, self.names = kernels, []  # type: ignore[var-annotated]

    def note(self) -> list[str]:
        """What was started until now."""
        told = sum(name.endswith("_kernel") for name in self.names)
        self.names += [kernel.name for kernel in self.kernels[told:]]
        return self.names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every op of torch."""
        packet = func.overloadpacket.__name__
        views = any(of.alias_info is not None and not of.alias_info.is_write for of in func._schema.returns)
        if packet not in ROOM and not views and func.namespace == "aten":
            self.note().append(f"waits: {packet}" if packet in ASKS else packet)
        return func(*args, **(kwargs or {}))


def launched(call: Callable[[], object], architecture: int = 90) -> list[str]:
    """The names of what a call starts on a GPU of `architecture`; "waits: name" where the host waits for data.

    Ops are computed past the dispatcher, as those of plain tensors are; it would hide what they start.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_a_gpu(architecture))
        kernels = stack.enter_context(launch.record(architecture))
        stack.enter_context(torch.no_grad())
        seen = stack.enter_context(_Ops(kernels))

        def read(numbers: torch.Tensor, rows: int) -> list[int]:
            seen.note().append("waits: read")
            return [rows] + [0] * (numbers.numel() - 1)

        stack.enter_context(mock.patch.object(encode_threshold, "read", read))
        stack.enter_context(mock.patch.object(_library, "direct", return_value=True))
        call()
    return seen.note()
