"""Runs cases: sets contenders up, refuses wrong answers, times the rest in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from saekernels.bench.cpu.record import Record, Row, now
from saekernels.bench.measure import instructions, machine, memory, timing
from saekernels.bench.measure import shapes as cases
from saekernels.bench.measure.ceilings import measure
from saekernels.bench.measure.contenders import OURS, Contender, Op, Ready, Work
from saekernels.bench.measure.peers import NOT_INSTALLED, NotInstalled
from saekernels.bench.measure.shapes import Problem, Shape
from saekernels.bench.ops.table import OPS, USUAL

OK = "ok"
# A pilot on a small part of the tokens is quick, but too harsh on calls that use few tokens badly.
_PILOTS = (16, 4)
_GIB = 2**30
# JumpReLU's thresholds are not below 0, which half of the pre-activations exceed.
POSITIVE = ("sae_jumprelu", "train_jumprelu")


@dataclass(frozen=True)
class Settings:
    """What to run; None stands for an op's own choice.

    Attributes:
        ops: names of OPS; None: all (that the shapes fit).
        shapes: with k for the SAE ops, without for the loss.
        rounds: at most this many per contender.
        budget: seconds of timed calls per case, shared by its contenders. A contender of which one call would take
            longer than all of it is skipped, and so are calls for which memory does not suffice.
        quick: tiny shapes, and no contender that takes seconds to set up.
        cpu_time: CPU seconds of all threads are taken, which other work leaves alone, not those of a clock on the wall.
    """

    ops: tuple[str, ...] | None = None
    shapes: tuple[Shape, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    threads: int | None = None
    rounds: int = 20
    budget: float = 10.0
    quick: bool = False
    cpu_time: bool = False

    def clock(self) -> Callable[[], float]:
        """What takes the seconds."""
        return time.process_time if self.cpu_time else time.perf_counter


class Case(NamedTuple):
    op: Op
    shape: Shape
    dtype: torch.dtype


def plan(settings: Settings) -> list[Case]:
    """All cases, those that share weights beside each other.

    ValueError where an op that was named has no shape, or one that needs a threshold below 0.
    """
    found = []
    for op in (OPS[name] for name in settings.ops or USUAL):
        shapes = op.quick_shapes if settings.quick else op.shapes
        if settings.shapes is not None and op.own_shapes:
            shapes = shapes if settings.ops else ()
        elif settings.shapes is not None:
            shapes = tuple(shape for shape in settings.shapes if bool(shape.k) == bool(op.shapes[0].k))
            if settings.ops and not shapes:
                sizes = ",".join(map(str, settings.shapes[0].sizes().values()))
                raise ValueError(f"got {sizes}, {op.name} needs {','.join(op.shapes[0].sizes())}")
        for shape in shapes:
            if op.name in POSITIVE and 2 * shape.k > shape.F:
                raise ValueError(f"{op.name}: got k = {shape.k} of {shape.F} latents, need at most half of them active")
        found += [Case(op, shape, dtype) for shape in shapes for dtype in settings.dtypes or op.dtypes]
    families = list(dict.fromkeys(map(_family, found)))
    return sorted(found, key=lambda case: families.index(_family(case)))


def _family(case: Case) -> tuple[int, int, torch.dtype]:
    """Cases that agree in this share their weights."""
    return case.shape.d, case.shape.F, case.dtype


class StoppedError(KeyboardInterrupt):
    """A run was interrupted: `record` holds the cases that were measured until then."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record


def run(settings: Settings, say: Callable[[str], object] = lambda line: None, todo: list[Case] | None = None) -> Record:
    """Run all cases, or those in `todo`; `say` gets a line of progress for each.

    Raises StoppedError where it is interrupted after the first of them.
    """
    todo, threads = plan(settings) if todo is None else todo, torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    record = None
    try:
        record = _start(settings)
        say("measured the machine's ceilings")
        for number, case in enumerate(todo, start=1):
            started = time.perf_counter()
            if _family(case) != _family(todo[number - 2]):
                # Weights of the last size would take the memory that this one needs.
                cases.matrix.cache_clear()
            record.rows += run_case(case, settings)
            seconds = time.perf_counter() - started
            say(f"[{number}/{len(todo)}] {case.op.name} {_short(case.dtype)} {case.shape}: {seconds:.1f} s")
        record.hold_against(record.roofs.best_of(measure(settings.quick)))
    except KeyboardInterrupt:
        if record is None or not record.rows:
            raise
        record.hold_against(record.roofs)
        record.sort()
        raise StoppedError(record) from None
    finally:
        torch.set_num_threads(threads)
        cases.matrix.cache_clear()
    record.sort()
    return record


def _start(settings: Settings) -> Record:
    return Record(
        date=now(),
        **machine.commit(),
        versions=machine.versions(),
        machine=machine.cpu(),
        settings={
            "rounds": settings.rounds,
            "budget_seconds": settings.budget,
            "quick": settings.quick,
            "cpu_time": settings.cpu_time,
        },
        memory_method=memory.method(),
        roofs=measure(settings.quick),
        rows=[],
    )


@torch.no_grad()
def run_case(case: Case, settings: Settings) -> list[Row]:
    """The rows of one case, in the contenders' order."""
    contenders = case.op.contenders(case.dtype)
    shortage = _shortage(case)
    if shortage:
        return [_row(case, contender.name, f"skipped: {shortage}") for contender in contenders]
    problem = case.op.make(case.shape, case.dtype)
    expected = case.op.expect(problem)
    rows: list[Row] = []
    calls: dict[str, Callable[[], object]] = {}
    for contender in contenders:
        twin = next((row for row in rows if row.contender == contender.like), None)
        if twin is not None and twin.status != OK:
            rows.append(_row(case, contender.name, twin.status))
            continue
        row, call = _set_up(case, contender, problem, expected, settings)
        rows.append(row)
        if call is not None:
            calls[contender.name] = call
    flush = timing.cold_caches(machine.cache_bytes())
    times = timing.interleave(
        calls, rounds=settings.rounds, budget=settings.budget, between=flush, clock=settings.clock()
    )
    work = case.op.work(problem, expected)
    for row in rows:
        if row.contender in times:
            _fill(row, times, work)
    return rows


def _shortage(case: Case) -> str | None:
    """Why the case does not fit into memory."""
    needed, there = case.op.needs(case.shape, case.dtype), memory.available()
    if there is None or needed <= there:
        return None
    return f"needs {needed / _GIB:.1f} GiB of memory, {there / _GIB:.1f} GiB are available"


def _set_up(
    case: Case, contender: Contender, problem: Problem, expected: Any, settings: Settings
) -> tuple[Row, Callable[[], object] | None]:
    """Its row, and its call if that is right and can be timed."""
    row = _row(case, contender.name, OK)
    if settings.quick and contender.slow_setup:
        row.status = "skipped: --quick"
        return row, None
    try:
        ready = contender.prepare(problem)
        row.detail = ready.detail
        too_slow = None if contender.like else _too_slow(ready, problem, settings)
        if too_slow:
            row.status = f"skipped: {too_slow}"
            return row, None
        before = machine.fallback_rows()
        output, row.peak_mib = memory.peak_of(lambda: ready.call(*problem.tokens))
        fallbacks = machine.fallback_rows() - before
        wrong = (contender.check or case.op.check)(problem, expected, output)
        row.instructions = instructions.count(lambda: ready.call(*problem.tokens))
    except NotInstalled:
        row.status = NOT_INSTALLED
        return row, None
    except Exception as error:
        # A peer may fail in any way; the others are timed all the same.
        row.status = f"failed: {type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        return row, None
    if wrong:
        row.status = f"failed: wrong answer: {wrong}"
        return row, None
    if not row.hold_fallbacks(fallbacks):
        return row, None
    return row, lambda: ready.call(*problem.tokens)


def _too_slow(ready: Ready, problem: Problem, settings: Settings) -> str | None:
    """Why it cannot be timed, judged by a sixteenth of the tokens, and by a quarter where that leaves doubt."""
    T, estimate, budget, clock = problem.shape.T, 0.0, settings.budget, settings.clock()
    for share in _PILOTS:
        rows = max(T // share, 1)
        if rows == T:
            return None
        tokens, started = problem.first(rows), clock()
        ready.call(*tokens)
        estimate = (clock() - started) * T / rows
        if estimate <= budget:
            return None
        if estimate > share * budget:
            break
    return f"one call would take about {estimate:.0f} s, and --budget is {budget:g} s"


def _row(case: Case, contender: str, status: str) -> Row:
    return Row(case.op.name, _short(case.dtype), case.shape.sizes(), contender, status)


def _fill(row: Row, times: dict[str, timing.Times], work: Work) -> None:
    """The figures of a contender that was timed."""
    mine = timing.summary(times[row.contender])
    row.median_ms, row.iqr_ms = 1e3 * mine.median, 1e3 * (mine.upper - mine.lower)
    row.rounds = mine.rounds
    if OURS in times:
        row.ratio_to_ours = timing.ratio_of_medians(times[row.contender], times[OURS])
        row.paired_ratio_to_ours = timing.median_of_ratios(times[row.contender], times[OURS])
    row.bytes, row.flops = work
    row.gb_per_s, row.gflop_per_s = work.bytes / mine.median / 1e9, work.flops / mine.median / 1e9


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
