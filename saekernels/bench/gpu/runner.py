"""Runs the scorecard: the gate, the ceilings, then every case, its contenders in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from saekernels.bench.cpu.record import Row, now
from saekernels.bench.gpu import cases, checks, forecast, record
from saekernels.bench.gpu.cards import CARDS, Card
from saekernels.bench.gpu.cases import Case, Settings
from saekernels.bench.gpu.check_tools import DTYPES
from saekernels.bench.gpu.clock import Clock, ceilings, interleave, peak_bytes
from saekernels.bench.gpu.contenders import OPS, Contender, of
from saekernels.bench.gpu.record import Record, TargetRow
from saekernels.bench.gpu.targets import MEMORY_CASES, MEMORY_SHARE, MODEL, TARGETS
from saekernels.bench.measure import machine, timing
from saekernels.bench.measure.contenders import OURS, Work
from saekernels.bench.measure.peers import NOT_INSTALLED, NotInstalled
from saekernels.bench.measure.shapes import Problem
from saekernels.bench.ops.gather_matmul import VECTORS

OK = "ok"
EAGER = 5  # calls without a graph


class GateClosed(Exception):
    """A check failed, so nothing is timed; the message names those that did."""


@torch.no_grad()
def run(
    settings: Settings,
    device: torch.device,
    say: Callable[[str], object] = lambda line: None,
    keep: Callable[[Record], object] = lambda made: None,
    before: Record | None = None,
) -> Record:
    """The whole scorecard on a CUDA device. Raises GateClosed where an op is wrong.

    Args:
        keep: called with the record so far whenever a case, or the ceilings, have been measured.
        before: what an earlier run kept: its gate, ceilings and cases are taken as they are. Raises OtherRecordError if
            it is of another GPU, other kernels, versions or settings.
    """
    started = time.perf_counter()
    made = _start(settings, device)
    if before is not None:
        record.require_same(before, made)
        made = before
    spent = made.seconds
    if not made.gate:
        made.gate = _gate(settings, device, say)
    clock = Clock(device)
    if not made.ceilings:
        made.ceilings = ceilings(device, clock, settings.quick)
        keep(made)
    say("ceilings: " + ", ".join(f"{name} {value:,.0f}" for name, value in made.ceilings.items()))
    card = card_of(made.ceilings, device)
    for case in settings.cases():
        if made.has(case):
            continue
        begun = time.perf_counter()
        made.rows += run_case(case, settings, device, clock, card)
        torch.cuda.empty_cache()
        judge(made, tuple(one for one in settings.cases() if made.has(one)), card)
        made.seconds = spent + time.perf_counter() - started
        keep(made)
        say(f"{case}: {time.perf_counter() - begun:.1f} s")
    return made


def _gate(settings: Settings, device: torch.device, say: Callable[[str], object]) -> dict[str, str | None]:
    with torch.enable_grad():
        outcomes = checks.gate(device, say, DTYPES[:2] if settings.quick else DTYPES)
    failed = [outcome.name for outcome in outcomes if outcome.wrong]
    if failed:
        raise GateClosed(f"nothing was timed, because these checks fail: {', '.join(failed)}")
    return {outcome.name: outcome.wrong for outcome in outcomes}


def _start(settings: Settings, device: torch.device) -> Record:
    return Record(
        date=now(),
        **machine.commit(),
        kernel_hash=record.kernel_hash(),
        hardware=record.hardware(device),
        versions=record.versions(),
        settings={"rounds": settings.rounds, "budget_seconds": settings.budget, "quick": settings.quick},
    )


def card_of(measured: dict[str, float], device: torch.device) -> Card:
    """The nearest card that the model knows, with the ceilings measured here."""
    found = torch.cuda.get_device_properties(device)
    nearest = next((card for name, card in CARDS.items() if name in found.name), CARDS["H100"])
    return nearest._replace(
        name=found.name,
        bf16=measured["bf16_tflops"],
        tf32=measured["tf32_tflops"],
        fp32=measured["fp32_tflops"],
        eight_bit=2 * measured["bf16_tflops"],
        memory=measured["copy_gbs"],
        l2=measured["l2_gbs"],
        l2_bytes=found.L2_cache_size,
        multiprocessors=found.multi_processor_count,
        launch=1e-6 * measured["launch_us"],
    )


def run_case(case: Case, settings: Settings, device: torch.device, clock: Clock, card: Card) -> list[Row]:
    """The rows of one case, in the contenders' order."""
    problem = cases.make(case, device)
    op = of(case, not settings.quick)
    expected = op.expect(problem)
    rows: list[Row] = []
    clocks: dict[str, Callable[[], float]] = {}
    for contender in op.contenders:
        row, timer = set_up(case, contender, problem, expected, clock)
        rows.append(row)
        if timer is not None:
            clocks[contender.name] = timer
    times = interleave(clocks, settings.rounds, settings.budget)
    least = least_work(case)
    for row in rows:
        if row.contender in times:
            _fill(row, times, least, card)
    return rows


def set_up(
    case: Case, contender: Contender, problem: Problem, expected: Any, clock: Clock
) -> tuple[Row, Callable[[], float] | None]:
    """Its row, and its clock if it is right and can be timed."""
    row = Row(case.op, str(case.dtype).removeprefix("torch."), case.shape.sizes(), contender.name, OK)
    try:
        ready = contender.prepare(problem)
        row.detail = ready.detail

        def call() -> Any:
            return ready.call(*problem.tokens)

        before = machine.fallback_rows()
        output = call()
        fallbacks = machine.fallback_rows() - before
        wrong = contender.check(problem, expected, output) if contender.check else None
        del output
        if wrong:
            row.status = f"failed: wrong answer: {wrong}"
            return row, None
        if not row.hold_fallbacks(fallbacks):
            return row, None
        row.peak_mib = peak_bytes(call, clock.device) / 2**20
        row.eager_ms = statistics.median(clock.timed(call)() for _ in range(EAGER))
        try:
            return row, clock.prepared(call)
        except RuntimeError:  # waits for the device, which a graph cannot
            torch.cuda.synchronize(clock.device)
            row.detail = f"{row.detail}, no graph".lstrip(", ")
            return row, clock.timed(call)
    except NotInstalled:
        row.status = NOT_INSTALLED
    except Exception as error:
        # Others may fail in any way, memory above all; the rest are timed all the same.
        row.status = f"failed: {type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    torch.cuda.empty_cache()
    return row, None


def least_work(case: Case) -> Work:
    """Operations of the op, and each input read and each output written once, in bytes."""
    (T, d, F, k), size = case.shape, case.dtype.itemsize
    if case.op == "decode":
        used = int(F * (1 - (1 - 1 / F) ** (T * k)))
        return Work((used * d + T * d) * size + T * k * (size + 4), 2 * T * k * d)
    if case.op == "gather_matmul":
        used = int(F * (1 - (1 - 1 / F) ** (T * k)))
        moved = (VECTORS * T * d + used * d + VECTORS * T * k) * size + 4 * T * k
        return Work(moved, 2 * VECTORS * T * k * d)
    if case.op == "loss_train":  # both streams' products, and the two of the gradient of their states
        return Work((4 * T * d + F * d) * size + 24 * T, 8 * T * d * F)
    if case.op == "loss":
        return Work((2 * T * d + F * d) * size + 24 * T, 4 * T * d * F)
    matrices = {"encode": 1, "sae_topk": 2, "sae_train": 4}[case.op]
    return Work((matrices * F * d + 2 * T * d) * size + T * k * (size + 4), 2 * T * d * F)


def _fill(row: Row, times: dict[str, timing.Times], least: Work, card: Card) -> None:
    """The figures of a contender that was timed; times are in milliseconds."""
    mine = timing.summary(times[row.contender])
    row.median_ms, row.iqr_ms, row.rounds = mine.median, mine.upper - mine.lower, mine.rounds
    if OURS in times:
        row.ratio_to_ours = timing.ratio_of_medians(times[row.contender], times[OURS])
        row.paired_ratio_to_ours = timing.median_of_ratios(times[row.contender], times[OURS])
    row.bytes, row.flops = least
    row.gb_per_s, row.gflop_per_s = least.bytes / mine.median / 1e6, least.flops / mine.median / 1e6
    rate = card.bf16 if row.dtype == "bfloat16" else card.tf32
    bound = max(least.flops / (rate * 1e9), least.bytes / (card.memory * 1e6))
    row.share_of_bound = bound / mine.median


def judge(made: Record, chosen: tuple[Case, ...], card: Card) -> None:
    """Predictions beside the rows, and every target that they decide, in place of what the record had of both."""
    made.predicted_ms, made.targets = {}, []
    measured = {(row.op, row.dtype, tuple(row.shape.items()), row.contender): row for row in made.rows}

    def row_of(case: Case, contender: str) -> Row | None:
        dtype = str(case.dtype).removeprefix("torch.")
        return measured.get((case.op, dtype, tuple(case.shape.sizes().items()), contender))

    def milliseconds(case: Case, contender: str) -> float | None:
        if contender == MODEL:
            return forecast.milliseconds(case, MODEL, card)
        row = row_of(case, contender)
        return row.median_ms if row else None

    for case in chosen:
        for contender in OPS[case.op].contenders:
            predicted = forecast.milliseconds(case, contender.name, card)
            if predicted is not None and row_of(case, contender.name):
                made.predicted_ms[f"{case}: {contender.name}"] = predicted
    for target in TARGETS:
        if target.case in chosen:
            ratio = target.ratio(milliseconds)
            met = None if ratio is None else target.met(ratio)
            made.targets.append(TargetRow(str(target.case), target.text(), target.limit, ratio, met))
    for case in MEMORY_CASES:
        row = row_of(case, OURS)
        if case in chosen and row and row.peak_mib is not None:
            T, _, F, k = case.shape
            share = (row.peak_mib * 2**20 - 6 * T * k) / (2 * T * F)
            text = "memory beside the results over that of T x F in bf16"
            made.targets.append(TargetRow(str(case), text, MEMORY_SHARE, share, share <= MEMORY_SHARE))
