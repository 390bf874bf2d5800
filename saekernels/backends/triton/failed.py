"""failed: the rows that a screen could not serve: listed on the device for `exact_rows`, and counted where they are.

A few such rows cost little; a screen that fails routinely is a defect, so what `stats` says is shown by
`saekernels info --stats`, and a benchmark's row with many of them has no figures.
"""

from __future__ import annotations

import contextlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from saekernels.backends.triton.launch import multiprocessors, recording


class Failed(NamedTuple):
    """The rows that fail, and what the programs that recompute them tell one another.

    Attributes:
        rows: [T] int32, those that fail in front, in any order.
        number: [1] int32, how many they are.
        arrived: [programs(device)] int32, zeros.
    """

    rows: Tensor
    number: Tensor
    arrived: Tensor


# By device, and by stream there.
_counters: dict[tuple[int | None, int], Tensor] = {}
_by_host = 0


def programs(device: torch.device) -> int:
    """How many programs recompute failed rows: as many as fit on the device at a time."""
    return 4 * multiprocessors(device)


def none_yet(rows: int, device: torch.device) -> Failed:
    """For T `rows`."""
    zeros = torch.zeros(4 + programs(device), dtype=torch.int32, device=device)  # both parts begin at 16 bytes
    return Failed(torch.empty(rows, dtype=torch.int32, device=device), zeros[:1], zeros[4:])


def counter(device: torch.device) -> Tensor:
    """[1] int32 on the device, to which kernels add the rows that they recompute, as long as the process lives.

    Each stream has its own, which is made 0 there, so that no stream waits for another, nor the host for any.
    """
    if recording():
        return torch.zeros(1, dtype=torch.int32, device=device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _of_a_graph(device)
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    key = (device.index, 0 if stream is None else stream.cuda_stream)
    if key not in _counters:
        # In a thread of its own: what this one allocates may be a graph's, which takes it for free after its warm-up.
        with ThreadPoolExecutor(1) as alone:
            _counters.setdefault(key, alone.submit(_zero, device, stream).result())
    return _counters[key]


def _of_a_graph(device: torch.device) -> Tensor:
    """One that was made before, for the host waits for the device before it captures."""
    for (index, _), made in _counters.items():
        if index == device.index:
            return made
    warnings.warn(
        "a CUDA graph is captured before any call outside of one: its fallback rows will not be counted", stacklevel=3
    )
    return torch.zeros(1, dtype=torch.int32, device=device)


def _zero(device: torch.device, stream: torch.cuda.Stream | None) -> Tensor:
    with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
        return torch.zeros(1, dtype=torch.int32, device=device)


def count(rows: int) -> None:
    """Add rows that the host knows of."""
    global _by_host
    _by_host += rows


def stats() -> dict[str, int]:
    """What the encoders did since the process began, as far as the devices are; waits for their current streams.

    fallback_rows: rows that were scored as a whole. Of encode_topk those that no screen could certify; of
    encode_threshold those with more latents above their thresholds than it has room for (`CAPACITY`), too many for any
    screen to serve.
    """
    return {"fallback_rows": _by_host + sum(int(seen) & 0xFFFFFFFF for seen in _counters.values())}
