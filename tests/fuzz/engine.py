"""Cases in worker processes: a crash or a hang is a failure of one case, and the next one goes on."""

from __future__ import annotations

import importlib
import multiprocessing
import random
import shlex
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

Target = Callable[[random.Random], str]
HANG_SECONDS = 30.0
MEMORY_BYTES = 6 << 30
ACCEPTED, REJECTED = "accepted", "rejected"


class Rejected(Exception):
    """A typed error that names what was wrong with the input."""


def one(target: Target, name: str, seed: int, case: int) -> str:
    """Run a case: what it did. Raises whatever a failure raises."""
    import torch

    torch.manual_seed(hash((seed, case)) % 2**31)
    try:
        return target(random.Random(f"{seed} {name} {case}"))
    except Rejected:
        return REJECTED


def run(
    names: list[str],
    seed: int,
    cases: int,
    seconds: float,
    workers: int,
    module: str = "fuzz.targets",
    patience: float = HANG_SECONDS,
) -> int:
    """Deal out cases until they or the time are over; prints failures as they come and a table at the end.

    module: whose TARGETS the names are of; patience: seconds after which a case counts as hung. Returns an exit code.
    """
    context = multiprocessing.get_context("spawn")
    started = time.monotonic()
    team = [Worker(context, (names, seed, workers, cases, module), number, patience) for number in range(workers)]
    counts: Counter[tuple[str, str]] = Counter()
    failures = 0
    while team:
        for worker in list(team):
            for name, outcome, case, detail in worker.results():
                counts[name, outcome] += 1
                if outcome == "failed":
                    failures += 1
                    repeat = f"python tests/fuzz --seed {seed} --case {case} --only {shlex.quote(name)}"
                    print(f"FAILED {name}: {repeat}\n{detail}", flush=True)
            if worker.over():
                team.remove(worker)
        if time.monotonic() - started > seconds:
            for worker in team:
                worker.stop()
            team = []
        time.sleep(0.05)
    _table(names, counts, time.monotonic() - started)
    return 1 if failures or not counts else 0  # a run that tested nothing has shown nothing


class Worker:
    """A process and the cases that are its own; started anew behind a case that ended it."""

    def __init__(self, context: Any, given: tuple[list[str], int, int, int, str], number: int, patience: float) -> None:
        self._context, self._given, self._patience = context, given, patience
        self._next = number
        self._done = False
        self._start()

    def _start(self) -> None:
        # A pipe of its own: a process that dies while it writes to a shared queue takes the queue's lock with it.
        self._reader, writer = self._context.Pipe(duplex=False)
        self._process = self._context.Process(target=_work, args=(writer, *self._given, self._next), daemon=True)
        self._process.start()
        writer.close()
        self._current: tuple[str, int] | None = None
        self._since = time.monotonic()

    def results(self) -> list[tuple[str, str, int, str]]:
        """(target, outcome, case, detail) of what has ended since."""
        found = []
        try:
            while self._reader.poll():
                kind, *rest = self._reader.recv()
                self._since = time.monotonic()
                if kind == "begin":
                    self._current = (rest[0], rest[1])
                    self._next = rest[1] + self._given[2]
                elif kind == "end":
                    found.append(tuple(rest))
                    self._current = None
                else:
                    self._done = True
        except (EOFError, OSError):
            found += self._lost(f"the process ended with {self._exit()}")
        if not self._done and self._current is not None and time.monotonic() - self._since > self._patience:
            self._process.kill()
            found += self._lost(f"no end after {self._patience:.0f} s")
        return found

    def _exit(self) -> int | None:
        self._process.join(5)
        return self._process.exitcode

    def _lost(self, why: str) -> list[tuple[str, str, int, str]]:
        if self._done:
            return []
        lost = self._current or ("start", self._next)
        if self._current is None:
            self._done = True  # it does not even start
        else:
            self._start()
        return [(lost[0], "failed", lost[1], why)]

    def over(self) -> bool:
        return self._done and not self._reader.poll()

    def stop(self) -> None:
        self._process.kill()


def _work(writer: Any, names: list[str], seed: int, workers: int, cases: int, module: str, first: int) -> None:
    import resource
    import warnings

    import torch

    warnings.simplefilter("ignore")
    targets = importlib.import_module(module).TARGETS
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and "libasan" not in Path("/proc/self/maps").read_text():
        # A header that lies about a size must not get the memory that it asks for.
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, resource.RLIM_INFINITY))
    for case in range(first, cases, workers):
        name = names[case % len(names)] if workers % len(names) else names[(case // workers) % len(names)]
        writer.send(("begin", name, case))
        try:
            outcome, detail = one(targets[name], name, seed, case), ""
        except BaseException:  # whatever it is, it is a finding
            outcome, detail = "failed", traceback.format_exc(limit=-6)
        writer.send(("end", name, outcome, case, detail))
    writer.send(("over",))


def _table(names: list[str], counts: Counter[tuple[str, str]], seconds: float) -> None:
    print(f"\n{'target':24}{'accepted':>10}{'rejected':>10}{'failed':>8}")
    for name in (*names, *({name for name, _ in counts} - set(names))):
        print(f"{name:24}{counts[name, ACCEPTED]:10,}{counts[name, REJECTED]:10,}{counts[name, 'failed']:8,}")
    total = sum(counts.values())
    print(f"{total:,} cases in {seconds:.0f} s, {total / seconds:,.0f} per second", flush=True)


__all__ = ["ACCEPTED", "REJECTED", "Rejected", "one", "run"]
