"""The search for configurations: every candidate in the op that it serves, right answers only, and a patch to print.

A candidate replaces the table's choice when it is faster by more than two runs of the same one differ.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from saekernels.backends.triton import configs
from saekernels.bench.gpu import cases
from saekernels.bench.gpu.cases import Case
from saekernels.bench.gpu.clock import Clock
from saekernels.bench.gpu.contenders import OPS, Contender, of
from saekernels.bench.measure.shapes import Problem

# The op whose time decides each kernel's configuration, at a narrow and a wide size.
DECIDES = {
    "screen": (Case("encode", cases.GPT2_WIDE, cases.BF16), Case("encode", cases.LLAMA, cases.BF16)),
    "decode": (Case("decode", cases.GPT2_WIDE, cases.BF16), Case("decode", cases.LLAMA, cases.BF16)),
    "linear_ce_kl": (Case("loss", cases.LOSSES[0], cases.BF16), Case("loss", cases.LOSSES[1], cases.BF16)),
    "segment": (Case("sae_train", cases.GPT2_WIDE, cases.BF16), Case("sae_train", cases.GEMMA, cases.BF16)),
}
ROUNDS = 5


class Choice(NamedTuple):
    """What a search found for a key: milliseconds of the table's configuration, of the best, and the former's noise."""

    key: configs.Key
    config: configs.Config
    before_ms: float
    best_ms: float
    noise_ms: float

    def better(self) -> bool:
        """Whether to change the table."""
        return self.before_ms - self.best_ms > self.noise_ms


def search(
    kernels: tuple[str, ...], device: torch.device, say: Callable[[str], object] = lambda line: None
) -> Iterator[Choice]:
    """The best configuration of each kernel and size on the card at hand, each as soon as it is found."""
    clock = Clock(device)
    major, minor = torch.cuda.get_device_capability(device)
    for kernel in kernels:
        for case in DECIDES[kernel]:
            yield _search_case(kernel, case, 10 * major + minor, device, clock, say)
            torch.cuda.empty_cache()


def _search_case(
    kernel: str, case: Case, architecture: int, device: torch.device, clock: Clock, say: Callable[[str], object]
) -> Choice:
    problem = cases.make(case, device)
    expected = OPS[case.op].expect(problem)
    contender = of(case).contenders[0]
    present, *others = configs.candidates(kernel, architecture, case.dtype, case.shape.d)

    def milliseconds(config: configs.Config) -> float | None:
        with configs.override(kernel, config):
            return timed(contender, problem, expected, clock)

    first, second = milliseconds(present), milliseconds(present)
    if first is None or second is None:
        raise RuntimeError(f"{kernel}: the table's own configuration {present} does not work here")
    best, best_ms = present, min(first, second)
    for config in others:
        reached = milliseconds(config)
        say(f"{kernel} {case.shape} {tuple(config)}: " + ("failed" if reached is None else f"{reached:.4f} ms"))
        if reached is not None and reached < best_ms:
            best, best_ms = config, reached
    wide = case.shape.d >= configs.WIDE
    key = configs.Key(kernel, architecture, case.dtype.itemsize, wide, configs.VERSION)
    return Choice(key, best, min(first, second), best_ms, abs(first - second))


def timed(contender: Contender, problem: Problem, expected: object, clock: Clock) -> float | None:
    """The median of a few rounds; None for a configuration that does not compile, does not fit or is wrong."""
    try:
        ready = contender.prepare(problem)
        output = ready.call(*problem.tokens)
        if contender.check and contender.check(problem, expected, output):
            return None
        timer = clock.prepared(lambda: ready.call(*problem.tokens))
        return statistics.median(timer() for _ in range(ROUNDS))
    except Exception:  # a compiler may fail in any way; the search goes on
        torch.cuda.synchronize(clock.device)
        return None


def patch(choice: Choice) -> str:
    """A line to put into `TABLE` of saekernels/backends/triton/configs.py, and what it is worth."""
    key, config = choice.key, choice.config
    if not choice.better():
        size = "wide" if key.wide else "narrow"
        return f"# {key.kernel}, {size}: the table's own is as good ({choice.before_ms:.4f} ms)"
    arguments = ", ".join(repr(part) for part in config)
    place = f"{key.kernel!r}, {key.architecture}, {key.itemsize}, {key.wide}, {key.triton!r}"
    gain = f"{choice.before_ms:.4f} to {choice.best_ms:.4f} ms"
    return f"    Key({place}): Config({arguments}),  # {gain}".replace("'", '"')
