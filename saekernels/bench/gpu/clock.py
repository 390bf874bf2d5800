"""Times on a GPU: calls captured into a CUDA graph, the cache flushed before each, by the device's own events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from saekernels.bench.measure.timing import Times

# Kernels of a few threads in one graph: what is between them is their time.
EMPTY = 500
# Calls in one graph: their sum is long beside the resolution of events.
CALLS = 5
# Below this a call is repeated more often.
SHORT_MS = 0.5


class Clock:
    """Times calls on one device, with cold caches."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        size = 3 * torch.cuda.get_device_properties(device).L2_cache_size
        self._rubbish = torch.empty(size, dtype=torch.uint8, device=device)
        self._flush_ms = {calls: self.replay_ms(self._capture(self.flush, calls)) for calls in (CALLS, 10 * CALLS)}

    def flush(self) -> None:
        """Put something else into the cache."""
        self._rubbish.zero_()

    def prepared(self, call: Callable[[], Any]) -> Callable[[], float]:
        """A function that runs the call several times and returns milliseconds per call, caches cold before each.

        Raises whatever capturing raises, for calls that wait for the device (`timed` is for those).
        """
        once = self.timed(call)()
        calls = CALLS if once > SHORT_MS else 10 * CALLS

        def both() -> None:
            self.flush()
            call()

        graph = self._capture(both, calls)
        return lambda: (self.replay_ms(graph) - self._flush_ms[calls]) / calls

    def between_ms(self) -> Callable[[], float]:
        """A function that returns milliseconds from one kernel of a graph to the next that waits for it."""
        one = torch.zeros(1, device=self.device)
        graph = self._capture(lambda: one.add_(1), EMPTY)
        return lambda: self.replay_ms(graph) / EMPTY

    def timed(self, call: Callable[[], Any]) -> Callable[[], float]:
        """Like `prepared`, without a graph: the host's launches count too."""

        def run() -> float:
            self.flush()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        return run

    def _capture(self, call: Callable[[], Any], calls: int) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            call()  # compilation and first allocations stay out of the graph
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
        return graph

    def replay_ms(self, graph: torch.cuda.CUDAGraph) -> float:
        """Milliseconds of one replay."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def interleave(clocks: dict[str, Callable[[], float]], rounds: int, budget: float) -> dict[str, Times]:
    """Milliseconds of each contender's rounds, in turns, the order reversed every other round.

    Args:
        budget: seconds for all; after those no new round begins, but three there are.
    """
    times: dict[str, Times] = {name: {} for name in clocks}
    spent = 0.0
    for number in range(rounds):
        if number >= 3 and spent > 1e3 * budget:
            break
        for name in sorted(clocks, key=list(clocks).index, reverse=number % 2 == 1):
            times[name][number] = clocks[name]()
            spent += CALLS * times[name][number]
    return times


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Memory that a call allocates at most above what was there, its results included."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def ceilings(device: torch.device, clock: Clock, quick: bool) -> dict[str, float]:
    """What the card reaches, the card model's terms (`cards.Card`).

    copy_gbs: bytes read and written; l2_gbs: read by multiprocessors from what L2 holds; launch_us: between dependent
    kernels of a graph; bf16_tflops, tf32_tflops, fp32_tflops: products of 8192 x 8192.
    """
    from saekernels.bench.measure import l2  # needs triton, which this module does not

    size = (256 if quick else 1024) << 20
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    found = {"copy_gbs": 2 * size / best_ms(clock.prepared(lambda: target.copy_(source))) / 1e6}
    read, moved = l2.reader(device)
    found["l2_gbs"] = moved / best_ms(clock.prepared(read)) / 1e6
    found["launch_us"] = 1e3 * best_ms(clock.between_ms())
    n = 8192
    generator = torch.Generator(device).manual_seed(1)
    square = torch.empty(n, n, device=device).normal_(generator=generator)
    for name, dtype, tf32 in (
        ("bf16_tflops", torch.bfloat16, False),
        ("tf32_tflops", torch.float32, True),
        ("fp32_tflops", torch.float32, False),
    ):
        a = square.to(dtype)
        out = torch.empty_like(a)
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            multiply = clock.prepared(lambda a=a, out=out: torch.mm(a, a, out=out))  # type: ignore[misc]
            found[name] = 2 * n**3 / best_ms(multiply) / 1e9
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return found


def best_ms(clock: Callable[[], float], rounds: int = 5) -> float:
    """A ceiling is what was reached once."""
    return min(clock() for _ in range(rounds))
