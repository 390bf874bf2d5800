"""Interleaved timing under a clock that the calls themselves move."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from saekernels.bench.measure import instructions, memory, timing


class Clock:
    """Stands still but for the seconds that calls add."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, []

    def call(self, name: str, *seconds: float) -> Callable[[], None]:
        """A call that takes seconds[0] the first time, and so on; the last for good."""
        left = list(seconds)

        def run() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run

    def __call__(self) -> float:
        return self.now


def test_contenders_take_turns_and_turn_round() -> None:
    clock = Clock()
    calls = {name: clock.call(name, 1.0) for name in "abc"}
    timing.interleave(calls, rounds=3, budget=100, clock=clock, between=lambda: clock.order.append("."))
    assert "".join(clock.order) == ".a.b.c.c.b.a.a.b.c"


def test_what_runs_between_is_not_timed() -> None:
    clock = Clock()
    times = timing.interleave(
        {"a": clock.call("a", 1.0)}, rounds=3, budget=100, clock=clock, between=clock.call("between", 50.0)
    )
    assert times == {"a": {0: 1.0, 1: 1.0, 2: 1.0}}


def test_a_call_runs_within_its_context_which_is_not_timed() -> None:
    clock = Clock()
    enter, leave = clock.call("(", 50.0), clock.call(")", 70.0)

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        enter()
        yield
        leave()

    calls = {"a": clock.call("a", 1.0), "b": clock.call("b", 2.0)}
    times = timing.interleave(calls, rounds=2, budget=1e9, within={"a": context}, clock=clock)
    assert "".join(clock.order) == "(a)bb(a)"
    assert times == {"a": {0: 1.0, 1: 1.0}, "b": {0: 2.0, 1: 2.0}}


def test_a_slow_contender_gets_fewer_rounds_but_three() -> None:
    clock = Clock()
    calls = {"fast": clock.call("fast", 1.0), "middling": clock.call("middling", 2.0), "slow": clock.call("slow", 90.0)}
    times = timing.interleave(calls, rounds=10, budget=30, clock=clock)
    assert {name: len(one) for name, one in times.items()} == {"fast": 10, "middling": 5, "slow": 3}
    assert list(times["slow"]) == [0, 1, 2]


def test_fewer_rounds_than_three_can_be_asked_for() -> None:
    clock = Clock()
    assert len(timing.interleave({"a": clock.call("a", 9.0)}, rounds=1, budget=1, clock=clock)["a"]) == 1


def test_summary_is_median_and_quartiles() -> None:
    seconds = [5.0, 1.0, 9.0, 2.0, 4.0, 100.0]
    found = timing.summary(dict(enumerate(seconds)))
    lower, median, upper = np.quantile(seconds, [0.25, 0.5, 0.75])
    assert (found.lower, found.median, found.upper, found.rounds) == pytest.approx((lower, median, upper, 6))
    assert timing.summary({4: 7.0}) == timing.Summary(7.0, 7.0, 7.0, 1)


def test_ratios_of_medians_and_paired() -> None:
    ours = {0: 1.0, 1: 10.0, 2: 2.0, 3: 2.0}
    theirs = {0: 3.0, 1: 30.0, 2: 5.0}
    assert timing.ratio_of_medians(theirs, ours) == 5.0 / 2.0
    assert timing.median_of_ratios(theirs, ours) == 3.0
    assert timing.median_of_ratios({7: 1.0}, ours) is None


def test_a_slow_minute_of_the_machine_leaves_the_paired_ratio() -> None:
    clock = Clock()
    moods = (1.0, 20.0, 20.0, 20.0, 1.0)
    calls = {"ours": clock.call("ours", *moods), "theirs": clock.call("theirs", *(2 * mood for mood in moods))}
    times = timing.interleave(calls, rounds=5, budget=1e9, clock=clock)
    assert timing.median_of_ratios(times["theirs"], times["ours"]) == 2.0


def test_peak_memory_of_a_call() -> None:
    if memory.method() != memory.METHOD:
        pytest.skip(memory.method())
    result, peak = memory.peak_of(lambda: torch.ones(8 << 20).sum())
    assert result == 8 << 20
    assert peak == pytest.approx(32, abs=4)
    assert memory.peak_of(lambda: None)[1] == pytest.approx(0, abs=2)


def test_unmeasured_memory_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "none" / "clear_refs")
    assert memory.method().startswith("not measured: ")
    assert memory.peak_of(lambda: 3) == (3, None)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_count_is_of_all_threads_of_the_call(threads: int) -> None:
    """Of an event that every system counts: nanoseconds on a processor, in place of instructions."""
    task_clock = instructions.Event(type=1, config=1)
    left, right = torch.randn(800, 800), torch.randn(800, 800)
    before, torch_threads = 0.0, torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        left @ right
        before, began = time.process_time(), time.perf_counter()
        counted = instructions.count(lambda: [left @ right for _ in range(20)], task_clock)
        used, passed = 1e9 * (time.process_time() - before), 1e9 * (time.perf_counter() - began)
    finally:
        torch.set_num_threads(torch_threads)
    if counted is None:
        pytest.skip("no leave to count events here")
    # What a host takes away from a virtual processor is in the count, and not in the process's own time.
    assert 0.9 * used <= counted <= 1.05 * threads * passed


def test_what_cannot_be_counted_is_none_and_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    unknown = instructions.Event(type=99, config=1)
    assert instructions.count(lambda: calls.append(1), unknown) is None
    monkeypatch.setattr(instructions.platform, "machine", lambda: "pdp11")
    opened = len(os.listdir("/proc/self/fd"))
    assert instructions.count(lambda: calls.append(1)) is None
    assert calls == []
    assert len(os.listdir("/proc/self/fd")) == opened
