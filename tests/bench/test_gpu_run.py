"""The scorecard's record and runner, with a clock of the host's where there is no GPU."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import fails
from saekernels.bench import Shape
from saekernels.bench.cpu.record import now
from saekernels.bench.gpu import cases, plots, record, runner
from saekernels.bench.gpu.cards import CARDS
from saekernels.bench.gpu.cases import Case, Settings
from saekernels.cli.commands import bench_gpu

CPU = torch.device("cpu")
TINY = (
    Case("encode", Shape(40, 32, 600, 8), torch.float32),
    Case("decode", Shape(40, 32, 600, 8), torch.float32),
    Case("sae_topk", Shape(40, 32, 600, 8), torch.float32),
    Case("sae_train", Shape(40, 32, 600, 8), torch.float32),
    Case("loss", Shape(40, 32, 500), torch.float32),
    Case("loss_train", Shape(40, 32, 500), torch.float32),
    Case("gather_matmul", Shape(40, 32, 600, 8), torch.float32),
)


class HostClock:
    """What `Clock` does, by the host's clock."""

    device = CPU

    def prepared(self, call: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)

        return run

    timed = prepared


def made_record() -> record.Record:
    """A record of no card, with rows measured here."""
    made = record.Record(
        now(), "0123456789abcdef", False, record.kernel_hash(), {"gpu": "NVIDIA Nothing 1"}, {}, {"rounds": 3}
    )
    for case in TINY:
        made.rows += runner.run_case(case, Settings(rounds=3), CPU, HostClock(), CARDS["H200"])  # type: ignore[arg-type]
    runner.judge(made, TINY, CARDS["H200"])
    return made


@pytest.fixture(autouse=True)
def no_device_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "peak_bytes", lambda call, device: 2**20)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)


def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    made = made_record()
    timed = {(row.op, row.contender) for row in made.rows if row.status == "ok"}
    for op in ("encode", "decode", "sae_topk", "sae_train", "loss"):
        assert (op, "saekernels") in timed
    for row in made.rows:
        assert row.status == "ok" or "not installed" in row.status, (row.contender, row.status)
        if row.status == "ok":
            assert row.median_ms
            assert row.median_ms > 0
            assert row.eager_ms
            assert row.rounds == 3
            assert row.share_of_bound
        assert row.fallback_rows == (0 if row.contender.startswith("saekernels") else None)
    content = json.loads(made.to_json())
    assert content["kind"] == "gpu"
    assert content["kernel_hash"] == record.kernel_hash()
    assert f"{TINY[0]}: saekernels" in content["predicted_ms"]
    text = "\n".join(bench_gpu.lines(made))
    assert "NVIDIA Nothing 1" in text
    assert "torch embedding_bag" in text
    drawn = plots.draw(made, tmp_path / "card.json")
    assert {path.name for path in drawn} == {f"card-{case.op}.svg" for case in TINY}
    assert all(path.read_text().startswith("<?xml") for path in drawn)


def test_measured_ceilings_take_the_place_of_the_assumed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        name, L2_cache_size, multi_processor_count = "NVIDIA H200", 1 << 20, 7

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Found)
    names = ("bf16_tflops", "tf32_tflops", "fp32_tflops", "copy_gbs", "l2_gbs", "launch_us")
    measured = {name: float(value) for value, name in enumerate(names, 1)}
    card = runner.card_of(measured, CPU)
    assert card == CARDS["H200"]._replace(
        name="NVIDIA H200", bf16=1, tf32=2, fp32=3, eight_bit=2, memory=4, l2=5, l2_bytes=1 << 20, multiprocessors=7,
        launch=pytest.approx(6e-6),
    )  # fmt: skip


def test_a_wrong_contender_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "of", lambda *arguments: wrong)
    genuine = runner.OPS["decode"]
    first = genuine.contenders[0]
    ready = first.prepare(cases.make(TINY[1], CPU))
    off_by_one = ready._replace(call=lambda values, indices: ready.call(values, indices) + 1)
    bad = type(first)("wrong", lambda problem: off_by_one, first.check)
    broken = type(first)("broken", lambda problem: 1 / 0, first.check)
    wrong = type(genuine)((first, bad, broken), genuine.expect)
    rows = runner.run_case(TINY[1], Settings(rounds=3), CPU, HostClock(), CARDS["H200"])  # type: ignore[arg-type]
    assert [row.status.split(":")[0] for row in rows] == ["ok", "failed", "failed"]
    assert "wrong answer" in rows[1].status
    assert "ZeroDivisionError" in rows[2].status
    assert rows[1].median_ms is None


def test_many_fallback_rows_fail_a_row_and_few_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    case, found = Case("encode", Shape(200, 32, 600, 8), torch.float32), []
    problem, op = cases.make(case, CPU), runner.OPS["encode"]
    for fallen in (3, 2):
        counted = itertools.count(0, fallen)
        monkeypatch.setattr(runner.machine, "fallback_rows", lambda counted=counted: next(counted))
        row, _ = runner.set_up(case, op.contenders[0], problem, op.expect(problem), HostClock())  # type: ignore[arg-type]
        found.append((row.status, row.fallback_rows))
    assert found == [("failed: 3 of 200 rows took a fallback (saekernels info --stats)", 3), ("ok", 2)]
    row.median_ms = 1.0
    assert bench_gpu._figures(row).endswith("2 fallback rows")


def test_records_never_overwrite_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    first = record.default_path("NVIDIA H200", "2026-11-23T01:02:03+00:00", None)
    assert first == tmp_path / "saekernels-nvidia-h200-2026-11-23.json"
    first.touch()
    assert record.default_path("NVIDIA H200", "2026-11-23T01:02:03+00:00", None).name.endswith("-2.json")
    inside = record.default_path("NVIDIA H200", "2026-11-23T01:02:03+00:00", "0123456789")
    assert inside.parts[-4:] == ("benchmarks", "results", "nvidia-h200", "2026-11-23-0123456.json")


def test_the_hash_changes_with_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernel.cu").write_text("a")
    monkeypatch.setattr(record, "SOURCES", (tmp_path,))
    before = record.kernel_hash()
    (tmp_path / "kernel.cu").write_text("b")
    assert record.kernel_hash() != before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gpu"], "no CUDA device is here; --dry-run prints the plan"),
        (["gpu", "--tune"], "no CUDA device is here"),
        (["check", "--device", "cuda"], "--device: got 'cuda', and no CUDA device is here"),
        (["gpu", "--dry-run", "--json", "a.json"], "--json: got it beside --dry-run"),
        (["gpu", "--dry-run", "--resume"], "--resume: got it beside --dry-run"),
        (["gpu", "--ops", "nope", "--dry-run"], "no op 'nope'; need some of encode"),
        (["gpu", "--kernels", "nope"], "no kernel 'nope'; need some of screen"),
        (["check", "--checks", "nope"], "no check 'nope'; need some of encode"),
        (["gpu", "--rounds", "2"], "--rounds"),
        (["gpu", "--budget", "-1"], "need a positive number of seconds"),
        (["gpu", "--quick", "--ops", "sae_train", "--dry-run"], "no case of sae_train is among those of --quick"),
    ],
)
def test_bad_requests(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, ["bench", *argv])


def test_problems_are_the_same_every_time() -> None:
    for case in TINY:
        first, second = cases.make(case, CPU), cases.make(case, CPU)
        assert all(torch.equal(a, b) for a, b in zip(first.tokens, second.tokens, strict=True))


def test_the_driver_is_asked_and_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = subprocess.CompletedProcess([], 0, "580.1, 1980 MHz, 3201 MHz, 700.00 W\n", "")
    monkeypatch.setattr(record.subprocess, "run", lambda *arguments, **options: answer)
    assert record._from_driver(CPU)["driver_version"] == "580.1"
    monkeypatch.setattr(record.subprocess, "run", lambda *arguments, **options: (_ for _ in ()).throw(OSError()))
    assert record._from_driver(CPU) == {}
