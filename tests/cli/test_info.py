"""`saekernels info` agrees with the registry and says why."""

from __future__ import annotations

import json

import pytest
import torch

import saekernels
from saekernels.backends import registry
from saekernels.cli import main


def test_json_is_what_the_registry_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["saekernels"] == saekernels.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert set(facts["backends"]) == set(registry.PREFERENCE)
    found = {(row["op"], row["device"], row["dtype"]): row["backend"] for row in facts["ops"]}
    for op in registry.PRIMITIVES:
        for dtype in registry.DTYPES:
            name = registry.select(op, "cpu", dtype).NAME if registry.serves(op, "cpu", dtype) else "none"
            assert found[op, "cpu", str(dtype).removeprefix("torch.")] == name


def test_text_names_every_op_and_the_reason_of_who_does_not_serve(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.load("cpu"), "available", lambda: "no compiler was found")
    registry.select.cache_clear()
    try:
        assert main(["info"]) == 0
    finally:
        registry.select.cache_clear()
    text = capsys.readouterr().out
    for op in registry.PRIMITIVES:
        line = next(line for line in text.splitlines() if line.startswith(f"{op} "))
        server = "none" if op in registry.OPTIONAL else "reference"
        assert f"{server}  (cpu: no compiler was found" in line
    assert f"saekernels    {saekernels.__version__}" in text


def test_a_missing_package_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from saekernels.cli.commands import info

    monkeypatch.setattr(info, "PACKAGES", ("surely-not-installed",))
    assert main(["info"]) == 0
    assert "surely-not-installed" in capsys.readouterr().out
    assert info.gather()["versions"]["surely-not-installed"] is None


def test_stats_show_each_way_of_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    if registry.load("cpu").available() is not None:
        pytest.skip("needs the native backend")
    assert main(["info", "--stats", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["stats"]
    assert found["a single row"]["direct_rows"] == 1
    assert found["gaussian rows"]["screened_rows"] == 64
    assert found["gaussian rows"]["rescored"] >= 64 * 32
    assert found["all scores equal"]["overflow_rows"] == 64
    screens = ("int8_rows", "int16_rows", "bf16_rows", "fp32_rows")
    (screen,) = (name for name in screens if found["gaussian rows"][name] == 64)
    by_screen = {name: 32 * (name == screen) for name in screens}
    assert found["NaN in every other row"] | {"rescored": 0} == {
        "direct_rows": 0, "screened_rows": 32, "rescreened_rows": 0, "rescored": 0, "overflow_rows": 0,
        "unbounded_rows": 32, "fallback_rows": 32, **by_screen,
    }  # fmt: skip
    screened_twice = 64 if screen != "fp32_rows" else 0
    assert found["all scores equal"]["rescreened_rows"] == screened_twice
    assert main(["info", "--stats"]) == 0
    assert "all scores equal" in capsys.readouterr().out


def test_stats_count_fallback_rows_on_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Triton's interpreter, which is asked for only here: no GPU, no table."""
    triton = pytest.importorskip("saekernels.backends.triton")
    if triton.available() is not None or not triton.INTERPRETING:
        pytest.skip("needs Triton's interpreter")
    from saekernels.cli.commands import stats
    from triton_cases import quicken_interpreter, screening

    quicken_interpreter()
    assert stats.gpu_counts() == {}
    x, W = torch.randn(3, 16), torch.randn(200, 16)
    made = [("good rows", x, W), ("all scores equal", torch.zeros(3, 16), W), ("a NaN", x.clone(), W)]
    made[2][1][1, 0] = torch.nan
    monkeypatch.setattr(stats, "kinds", lambda: iter(made))
    monkeypatch.setattr(stats, "K", 4)
    with screening(monkeypatch, step=4, rank=4, capacity=64):
        found = stats._added(triton, torch.device("cpu"))
    assert found == {
        "good rows": {"fallback_rows": 0},
        "all scores equal": {"fallback_rows": 3},
        "a NaN": {"fallback_rows": 1},
    }
    monkeypatch.setattr(stats, "gpu_counts", lambda: found)
    monkeypatch.setattr(stats, "counts", dict)
    monkeypatch.setattr(stats, "step_counts", dict)
    assert main(["info", "--stats"]) == 0
    table = capsys.readouterr().out.split("top 4, GPU")[1].splitlines()
    assert table[0].split() == ["fallback_rows"]
    assert [line.split()[-1] for line in table[2:5]] == ["0", "3", "1"]
