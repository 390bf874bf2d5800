"""The scorecard's gate: every check passes here, and a planted fault does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import saekernels as sk
from saekernels.backends import registry
from saekernels.bench.gpu import checks, record, runner
from saekernels.bench.gpu.cases import Settings
from saekernels.cli import main
from saekernels.cli.commands import bench_gpu

CPU = torch.device("cpu")


def test_every_check_passes_here() -> None:
    outcomes = checks.gate(CPU)
    assert [outcome for outcome in outcomes if outcome.wrong] == []
    assert len(outcomes) == len(checks.CHECKS) == 14


FAULTS = {
    "encode": ("encode_topk", lambda out: (out[0] * 1.01, out[1])),
    "adversaries": ("encode_topk", lambda out: (out[0], out[1].flip(1))),
    "thresholds": ("encode_threshold", lambda out: (out[0], out[1].flip(0), out[2])),
    "topk": ("topk", lambda out: (out[0], (out[1] + 1) % 300)),
    "decoding": ("decode", lambda out: out + 0.1),
    "losses": ("linear_ce_kl", lambda out: (out[0], out[1], out[2] * 1.001, out[3])),
}


@pytest.mark.parametrize("check", list(FAULTS))
def test_the_gate_catches_a_planted_fault(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, spoil = FAULTS[check]
    module = registry.load(registry.select(op, "cpu", torch.float32).NAME)
    genuine = getattr(module, op)

    def wrong(*arguments: Any, **options: Any) -> Any:
        return spoil(genuine(*arguments, **options))

    monkeypatch.setattr(module, op, wrong)
    (outcome,) = checks.gate(CPU, only=(check,))
    assert outcome.name == check
    assert outcome.wrong


def test_a_batch_dependent_op_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    module = registry.load(registry.select("encode_topk", "cpu", torch.float32).NAME)
    genuine = module.encode_topk

    def wrong(x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        values, indices = genuine(x, *arguments, **options)
        return values * (1 + 1e-7 * (len(x) % 2)), indices

    monkeypatch.setattr(module, "encode_topk", wrong)
    assert [outcome.name for outcome in checks.gate(CPU, only=("batches",)) if outcome.wrong] == ["batches"]


def test_an_op_that_raises_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(sk, "topk", broken)
    outcomes = {outcome.name: outcome.wrong for outcome in checks.gate(CPU, only=("topk", "nothing"))}
    assert outcomes["topk"] == "RuntimeError: no kernel image"


def test_nothing_is_timed_behind_a_closed_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.checks, "gate", lambda *arguments: [checks.Outcome("topk", "wrong")])
    monkeypatch.setattr(record, "hardware", lambda device: {"gpu": "none"})
    monkeypatch.setattr(runner, "Clock", lambda device: pytest.fail("the clock was started"))
    with pytest.raises(runner.GateClosed, match="nothing was timed, because these checks fail: topk"):
        runner.run(Settings(), CPU)


def test_check_prints_a_line_each_and_fails_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [checks.Outcome("encode", None), checks.Outcome("topk", "off by 3")]
    monkeypatch.setattr(bench_gpu.checks, "gate", lambda device, only: found)
    assert main(["bench", "check", "--device", "cpu"]) == 1
    assert capsys.readouterr().out.splitlines() == ["encode        right", "topk          WRONG: off by 3"]


def test_some_checks_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "check", "--device", "cpu", "--checks", "nothing,topk"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["topk", "nothing"]
