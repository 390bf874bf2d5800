"""A scorecard that is cut off: the record of what was measured, and the run that goes on with it; nothing is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import fails
from saekernels.bench import Shape
from saekernels.bench.cpu.record import Row
from saekernels.bench.gpu import cases, checks, record, runner, tune
from saekernels.bench.gpu.cards import CARDS
from saekernels.bench.gpu.cases import Case
from saekernels.cli import main
from saekernels.cli.commands import bench_gpu

PLAN = (
    Case("encode", cases.LLAMA, torch.bfloat16),
    Case("decode", Shape(40, 32, 600, 8), torch.float32),
    Case("decode", Shape(40, 32, 600, 8), torch.bfloat16),
)
CEILINGS = {"copy_gbs": 4000.0, "bf16_tflops": 700.0}


class Gpu:
    """What stands for a GPU: every call of the gate, the ceilings and a case, and which case is cut off."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.cut: Case | None = None

    def gate(self, *given: Any) -> list[checks.Outcome]:
        self.calls.append("gate")
        return [checks.Outcome("topk", None)]

    def ceilings(self, *given: Any) -> dict[str, float]:
        self.calls.append("ceilings")
        return CEILINGS

    def run_case(self, case: Case, *given: Any) -> list[Row]:
        self.calls.append(str(case))
        if case == self.cut:
            raise KeyboardInterrupt
        dtype, sizes = str(case.dtype).removeprefix("torch."), case.shape.sizes()
        return [
            Row(case.op, dtype, sizes, name, "ok", median_ms=float(len(self.calls)), peak_mib=1.0)
            for name in ("saekernels", "torch, the product alone")
        ]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(cases, "QUICK", PLAN)
    monkeypatch.setattr(record, "hardware", lambda device: {"gpu": "NVIDIA Nothing 1"})
    monkeypatch.setattr(runner.checks, "gate", made.gate)
    monkeypatch.setattr(runner, "ceilings", made.ceilings)
    monkeypatch.setattr(runner, "run_case", made.run_case)
    monkeypatch.setattr(runner, "Clock", lambda device: None)
    monkeypatch.setattr(runner, "card_of", lambda *given: CARDS["H200"])
    monkeypatch.setattr(bench_gpu, "device_of", lambda name: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return made


def command(path: Path, *more: str) -> list[str]:
    return ["bench", "gpu", "--quick", "--no-plots", "--json", str(path), *more]


def test_a_run_goes_on_where_it_was_cut_off(gpu: Gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    gpu.cut = PLAN[2]
    assert main(command(path, "--resume")) == 130, "there is no record yet"
    assert f"interrupted, {path} has what was measured; --resume goes on" in capsys.readouterr().err
    assert gpu.calls == ["gate", "ceilings", *map(str, PLAN)]
    kept = json.loads(path.read_text())
    assert [(row["op"], row["dtype"], row["median_ms"]) for row in kept["rows"][::2]] == [
        ("encode", "bfloat16", 3.0),
        ("decode", "float32", 4.0),
    ]
    assert kept["ceilings"] == CEILINGS
    assert next(target["ratio"] for target in kept["targets"] if target["ratio"] is not None) == 1.0
    gpu.cut, gpu.calls = None, []
    assert main(command(path, "--resume")) == 0
    assert gpu.calls == [str(PLAN[2])], "neither checked nor timed again"
    whole = json.loads(path.read_text())
    assert whole["rows"][:4] == kept["rows"]
    assert len(whole["rows"]) == 6
    # Decided once, however often the record was written.
    told = [(target["case"], target["target"]) for target in whole["targets"]]
    assert len(told) == len(set(told)) == len(kept["targets"])
    assert whole["seconds"] > kept["seconds"]
    assert whole["date"] == kept["date"]
    gpu.calls = []
    assert main(command(path)) == 0, "without --resume all is measured again"
    assert gpu.calls == ["gate", "ceilings", *map(str, PLAN)]


def test_before_the_ceilings_there_is_nothing_to_keep(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def cut(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "ceilings", cut)
    assert main(command(tmp_path / "gpu.json")) == 130
    assert "interrupted, nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kernel_hash", "0", "--resume: the record has kernel_hash 0, need "),
        ("hardware", {"gpu": "NVIDIA Other"}, "--resume: the record is of NVIDIA Other, need NVIDIA Nothing 1"),
        ("versions", {}, "--resume: the record has versions {}, need {'saekernels': "),
        ("settings", {"rounds": 3}, "--resume: the record has settings {'rounds': 3}, need {'rounds': 20, "),
        ("kind", "cpu", "gpu.json is not a readable record of saekernels bench gpu: its schema or kind is another"),
        ("rows", [{"op": "encode"}], "gpu.json is not a readable record of saekernels bench gpu: "),
        ("rows", 3, "gpu.json is not a readable record of saekernels bench gpu: "),
    ],
)
def test_another_record_is_refused(
    gpu: Gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: object, message: str
) -> None:
    path = tmp_path / "gpu.json"
    assert main(command(path)) == 0
    capsys.readouterr()
    text = json.dumps({**json.loads(path.read_text()), field: value})
    path.write_text(text)
    gpu.calls = []
    assert message in fails(capsys, command(path, "--resume"))
    assert path.read_text() == text
    assert gpu.calls == []


def test_resume_needs_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--resume: need --json PATH, the record to go on with" in fails(capsys, ["bench", "gpu", "--resume"])


def test_a_search_tells_each_choice_as_it_is_found(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(tune, "Clock", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def searched(kernel: str, case: Case, architecture: int, *given: Any) -> tune.Choice:
        if case.shape.d >= tune.configs.WIDE:
            raise KeyboardInterrupt
        key = tune.configs.Key(kernel, architecture, 2, False, "3.6")
        return tune.Choice(key, tune.configs.Config(64, 128, 64, 8, 3), 1.5, 1.25, 0.1)

    monkeypatch.setattr(tune, "_search_case", searched)
    assert main(["bench", "gpu", "--tune", "--kernels", "screen"]) == 130
    assert capsys.readouterr().out == (
        '    Key("screen", 90, 2, False, "3.6"): Config(64, 128, 64, 8, 3, 8, (), None, None),  # 1.5000 to 1.2500 ms\n'
    )
