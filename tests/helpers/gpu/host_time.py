"""The host's share of a small call on a GPU that is not there: what is launched, and the time until it is.

    python tests/helpers/gpu/host_time.py    # a JSON object per op and number of tokens

Triton goes its whole way but for the driver, which is a stand-in that starts nothing; torch's own ops are those of the
CPU, on codes and biases alone. Times are the process's, of the median call; a driver's own part is not in them.
Calls of functions, Python's and built-in, are counted beside them, which no other work on the machine changes.
Run as a program in a process of its own, which does not interpret Triton's kernels.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

from saekernels.backends import registry
from saekernels.backends import triton as backend
from saekernels.backends.triton import launch
from saekernels.ops import _library, decode, encode_topk
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
ARCHITECTURE = 90
WIDTH, LATENTS, K = 768, 24576, 32
TOKENS = (1, 16, 64)
CALLS = 200


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


class Driver:
    """Stands in for a GPU's driver: loads no binary and starts no kernel."""

    def __init__(self) -> None:
        self.utils = mock.Mock()
        self.utils.load_binary.return_value = (1, 1, 0, 0, 1024)
        self.utils.get_device_properties.return_value = {"max_shared_mem": 232448}

    def get_current_target(self) -> GPUTarget:
        """Of the architecture at hand."""
        return GPUTarget("cuda", ARCHITECTURE, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What would start a kernel."""
        return lambda *arguments: None


def microseconds(call: Callable[[], object]) -> float:
    """The process's time of a call, the median of CALLS after one that compiles."""
    call()
    taken = []
    for _ in range(CALLS):
        begun = time.process_time_ns()
        call()
        taken.append(time.process_time_ns() - begun)
    return statistics.median(taken) / 1000


def functions(call: Callable[[], object]) -> int:
    """How many functions a call calls, itself included."""
    seen = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen - 1  # the end of the profile is one


def ops(tokens: int) -> dict[str, Callable[[], object]]:
    """A TopK SAE's forward and its halves, in bfloat16."""
    made = {"dtype": torch.bfloat16}
    x, W = torch.randn(tokens, WIDTH, **made), torch.randn(LATENTS, WIDTH, **made)
    b_enc, b_dec = torch.zeros(LATENTS), torch.zeros(WIDTH, **made)
    values, indices = torch.zeros(tokens, K, **made), torch.zeros(tokens, K, dtype=torch.int32)

    def forward() -> Tensor:
        return decode(*encode_topk(x, W, b_enc, k=K), W, b_dec)

    return {
        "encode_topk": lambda: encode_topk(x, W, b_enc, k=K),
        "decode": lambda: decode(values, indices, W, b_dec),
        "TopK forward": forward,
    }


def main() -> None:
    """Print what each op costs."""
    assert not backend.INTERPRETING
    triton.runtime.driver.set_active(Driver())
    for tokens in TOKENS:
        for name, call in ops(tokens).items():
            names = launched(call, ARCHITECTURE)
            with on_a_gpu(ARCHITECTURE), torch.no_grad():
                took = microseconds(call)
                calls = functions(call)
            told = {"op": name, "tokens": tokens, "launches": len(names), "functions": calls}
            print(json.dumps(told | {"microseconds": round(took, 1)}), flush=True)


if __name__ == "__main__":
    main()
