"""The host's share of a small call on a GPU that is not there: what is launched, and the time until it is.

    python tests/helpers/scripts/host_time.py    # a JSON object per op and number of tokens

Triton goes its whole way but for the driver, which is a stand-in that starts nothing; torch's own ops are those of the
CPU, on codes and biases alone. Times are the process's, of the median call; a driver's own part is not in them.
Calls of functions, Python's and built-in, are counted beside them, which no other work on the machine changes.
Run as a program in a process of its own, which does not interpret Triton's kernels.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest has it

import torch  # noqa: E402
import triton  # noqa: E402
from torch import Tensor  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from launches import launched, on_a_gpu  # noqa: E402
from saekernels.backends import triton as backend  # noqa: E402
from saekernels.ops import decode, encode_topk  # noqa: E402

ARCHITECTURE = 90
WIDTH, LATENTS, K = 768, 24576, 32
TOKENS = (1, 16, 64)
CALLS = 200


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
