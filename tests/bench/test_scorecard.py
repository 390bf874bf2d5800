"""The scorecard in words, and what `saekernels bench compare` calls slower."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from saekernels.bench import Settings, run, schema
from saekernels.bench.cpu import compare, scorecard
from saekernels.bench.cpu.record import Record, Row
from saekernels.bench.measure.ceilings import Roofs
from saekernels.cli import main
from saekernels.cli.commands import bench_scorecard

SIZES = {"T": 1024, "d": 768, "F": 24576, "k": 32}


def row(contender: str, ms: float | None, op: str = "sae_topk", ratio: float | None = None, mib: float = 10.0) -> Row:
    status = "ok" if ms else "not installed"
    return Row(
        op, "float32", SIZES, contender, status, "", ms, 0.1 * (ms or 0), 9, ratio, ratio, mib, share_of_bound=0.5
    )


def record(*rows: Row) -> Record:
    return Record(
        "2026-11-24T00:00:00+00:00", None, None, {"saekernels": "0", "torch": "2"},
        {"model": "a CPU", "flags": [], "threads": 2, "backend": "cpu", "simd_level": "avx2", "screening": "fp32"},
        {}, "rss", Roofs(100.0, 100.0, 10.0, 10.0), list(rows),
    )  # fmt: skip


def example() -> Record:
    return record(
        row("saekernels", 10.0),
        row("torch, the product alone", 20.0, ratio=2.0),
        row("torch, chunked", 35.0, ratio=3.5, mib=100.0),
        row("torch", 40.0, ratio=4.0),
        row("SAELens", 70.0, ratio=7.0, mib=500.0),
        row("sparsify", None),
        row("saekernels", 8.0, "decode"),
        row("torch embedding_bag", 4.0, "decode", ratio=0.5),
    )


def test_a_line_says_what_matters() -> None:
    forward, decode = (next(line for line in scorecard.lines(example()) if line.name.startswith(name))
                       for name in ("SAE forward", "decode"))  # fmt: skip
    assert forward.what == "1024x768 to 24576, k 32"
    assert forward.ours_ms == 10.0
    assert list(forward.faster.items()) == [("torch, chunked", 3.5), ("torch", 4.0), ("SAELens", 7.0)]
    assert forward.saved_mib == 490.0
    assert forward.ceiling == 0.5
    assert decode.faster == {"torch embedding_bag": 0.5}
    assert [line.name for line in scorecard.lines(example())] == ["decode", "SAE forward, TopK"]


def test_the_text_has_the_table_the_bars_and_what_is_missing() -> None:
    text = scorecard.as_text(example())
    line = next(line for line in text.splitlines() if "SAE forward, TopK" in line)
    assert line.split()[-4:] == ["7.0x", "490", "MiB", "50%"]
    assert "3.5x" in line
    assert "2.0x" not in line
    assert "left out: sparsify: not installed (SAE forward, TopK)" in text
    bars = {line.split("█")[0].strip(): line.count("█") for line in text.splitlines() if "█" in line}
    assert bars["SAELens"] == 40
    assert bars["torch, chunked"] == 20
    assert bars["saekernels"] == round(40 / 7)
    assert scorecard.plot(example()).startswith("<svg")


def changed(factor: float, others: float = 1.0) -> tuple[dict[str, Any], dict[str, Any]]:
    before = example().to_dict()
    after = copy.deepcopy(before)
    for one in after["rows"]:
        if one["median_ms"]:
            one["median_ms"] *= factor if one["contender"] == "saekernels" and one["op"] == "sae_topk" else others
    return before, after


@pytest.mark.parametrize(
    ("factor", "others", "verdict"),
    [
        (1.0, 1.0, "same"),
        (1.04, 1.0, "same"),
        (1.5, 1.0, "slower"),
        (0.6, 1.0, "faster"),
        (1.5, 1.5, "same"),
        (1.0, 1.6, "faster"),
        (2.4, 1.6, "slower"),
    ],
)
def test_slower_is_beyond_noise_and_beyond_the_machines_own_drift(factor: float, others: float, verdict: str) -> None:
    found = {change.case[0]: change for change in compare.compare(*changed(factor, others))}
    assert found["sae_topk"].verdict == verdict
    assert found["sae_topk"].drift == pytest.approx(others)
    assert found["sae_topk"].ratio == pytest.approx(factor)


def test_noise_comes_from_quartiles_and_rounds() -> None:
    before, after = changed(1.5)
    quiet = compare.compare(before, after)[0].noise
    for data in (before, after):
        for one in data["rows"]:
            one["iqr_ms"] = 2.0 * (one["median_ms"] or 0)
    loud = compare.compare(before, after)[0]
    one_error = 1.2533 * (2.0 / 1.349) / 9**0.5
    assert loud.noise == pytest.approx(3 * one_error * 2**0.5)
    assert loud.noise > quiet >= 0.05
    assert loud.verdict == "same"


def test_compare_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, data in zip(paths, changed(1.5), strict=True):
        path.write_text(json.dumps(data))
    assert main(["bench", "compare", *map(str, paths)]) == 1
    told = capsys.readouterr().out
    assert "slower" in told
    assert "1.50x" in told
    assert "drift" in told
    assert main(["bench", "compare", str(paths[0]), str(paths[0])]) == 0
    capsys.readouterr()
    for content, message in (("{", "not a readable record"), ("[]", "no record of saekernels bench")):
        paths[1].write_text(content)
        assert main(["bench", "compare", *map(str, paths)]) == 2
        assert message in capsys.readouterr().err
    paths[1].write_text(json.dumps({**changed(1)[0], "rows": []}))
    assert main(["bench", "compare", *map(str, paths)]) == 2
    assert "no case in common" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("median_ms", "x", "row 0: median_ms: got 'x', need a number from 0 on, or null"),
        ("median_ms", float("nan"), "row 0: median_ms: got nan, need a number"),
        ("rounds", "a", "row 0: rounds: got 'a', need a number"),
        ("shape", [1], "row 0: shape: got [1], need sizes by name"),
        ("op", None, "row 0: op: got None, need a text"),
    ],
)
def test_a_record_that_cannot_be_compared_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: object, message: str
) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    before, after = changed(1.5)
    after["rows"][0][field] = value
    for path, data in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(data))
    assert main(["bench", "compare", *map(str, paths)]) == 2
    assert f"{paths[1]}: {message}" in capsys.readouterr().err


@pytest.mark.slow
def test_bench_alone_runs_the_scorecard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(settings: Settings, **options: Any) -> Record:
        return run(replace(settings, rounds=1, threads=1), **options)

    monkeypatch.setattr(bench_scorecard, "run_cases", once)
    assert main(["bench", "--quick", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in scorecard.NAMES.values())
    files = sorted((tmp_path / "out").iterdir())
    assert [file.suffix for file in files] == [".csv", ".json", ".svg"]
    data = json.loads(files[1].read_text())
    jsonschema.validate(data, schema())
    assert {one["op"] for one in data["rows"]} == set(scorecard.NAMES)
    (tmp_path / "file").write_text("")
    assert main(["bench", "--quick", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "--out: cannot make" in capsys.readouterr().err
