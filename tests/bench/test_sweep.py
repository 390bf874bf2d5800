"""benchmarks/encode_sweep.py at toy sizes: what is drawn, what fails, and what is written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from native_helpers import needs_native
from places import BENCHMARKS


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import encode_sweep

    return encode_sweep


def test_sizes_lie_in_their_ranges_and_follow_the_seed(sweep: Any) -> None:
    cases = list(sweep.drawn(60, seed=3))
    for shape, _, _ in cases:
        assert all(low <= size <= high for size, (low, high) in zip(shape, sweep.RANGES.values(), strict=True))
        assert shape.d % 64 == 0
        assert 2 * shape.T * shape.d * shape.F <= 2.5e11
    assert [kind for _, kind, _ in cases[:5]] == list(sweep.KINDS)
    assert {prepared for _, _, prepared in cases} == {True, False}
    assert cases == list(sweep.drawn(60, seed=3)) != list(sweep.drawn(60, seed=4))


def test_what_fails_a_case(sweep: Any) -> None:
    right = sweep.Case({"T": 1, "d": 2, "F": 3, "k": 1}, "normal", True, 1.0, 2.0, 2.0, 1.9, 0.0, None)
    assert not right.failed
    assert not replace(right, ratio=0.98, least=0.96).failed, "within its spread"
    for change in ({"ratio": 0.9, "least": 0.8}, {"fallback": 0.02}, {"wrong": "values"}):
        assert replace(right, **change).failed


@needs_native
def test_every_kind_of_data_is_measured_and_written(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "RANGES", {"T": (40, 48), "d": (256, 320), "F": (600, 700), "k": (3, 8)})
    monkeypatch.setattr(sweep, "_BUDGET", 0.01)
    monkeypatch.setattr(sys, "argv", ["encode_sweep.py", "--cases", "5", "--json", str(tmp_path / "r.json")])
    code = sweep.main()
    cases = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert [case["wrong"] for case in cases] == [None] * 5
    assert {case["kind"] for case in cases} == set(sweep.KINDS)
    ratios = [case["ratio"] for case in cases]
    assert ratios == sorted(ratios, reverse=True)
    out = capsys.readouterr().out
    failed = sum((case["ratio"] < 1 and case["least"] < 0.95) or case["fallback"] > 0.01 for case in cases)
    assert f"{failed} failed" in out.splitlines()[-1]
    assert code == (1 if failed else 0)
    monkeypatch.setattr(sweep.encode, "check", lambda *_: "values: off")
    assert sweep.main() == 1
    assert "values: off" in capsys.readouterr().out
