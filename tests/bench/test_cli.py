"""`saekernels bench cpu`: a quick run from end to end, and bad options."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from cli import fails
from saekernels.bench import GROUPS, OPS, Shape, schema
from saekernels.bench.cpu import runner
from saekernels.bench.cpu.record import Record, Row
from saekernels.bench.measure.ceilings import Roofs, measure
from saekernels.cli import main
from saekernels.cli.commands import bench


@pytest.mark.slow
def test_a_quick_run_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_path, csv_path = tmp_path / "r.json", tmp_path / "r.csv"
    argv = ["bench", "cpu", "--quick", "--rounds", "1", "--threads", "1"]
    assert main([*argv, "--json", str(json_path), "--csv", str(csv_path)]) == 0
    out, err = capsys.readouterr()
    data = json.loads(json_path.read_text())
    jsonschema.validate(data, schema())
    timed = set(OPS) - set(GROUPS["train"])
    assert {row["op"] for row in data["rows"]} == timed
    assert data["settings"]["quick"] is True
    assert len(list(csv.DictReader(csv_path.open()))) == len(data["rows"])
    cases = {(row["op"], row["dtype"], str(row["shape"])) for row in data["rows"]}
    for op in timed:
        assert f"\n{op} " in out
    assert "torch.compile: skipped: --quick" in out
    summary = out[out.index("Ours against the fastest baseline") :].splitlines()[1:]
    assert sum(line.startswith(tuple(f"{op} " for op in timed)) for line in summary) == len(cases), (
        "a line for each case"
    )
    assert f"[{len(cases)}/{len(cases)}]" in err


@pytest.fixture
def rough_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of --quick, in a moment."""
    monkeypatch.setattr(runner, "measure", lambda quick: measure(True))


@pytest.mark.usefixtures("rough_ceilings")
def test_only_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "cpu", "--ops", "decode,loss", "--shapes", "7,8,32,4", "5,8,30", "--rounds", "1"]
    assert main([*argv, "--dtypes", "float32,float16"]) == 0
    out, _ = capsys.readouterr()
    for case in ("T=7 d=8 F=32 k=4 float16", "T=7 d=8 F=32 k=4 float32", "T=5 d=8 V=30 float16"):
        assert case in out
    assert "encode" not in out


@pytest.mark.usefixtures("rough_ceilings")
def test_training_steps_of_the_classes_that_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    argv = ["bench", "train", "--classes", "batch_topk,gated,batch_topk", "--shapes", "40,24,96,5", "--rounds", "2"]
    assert main([*argv, "--cpu-time", "--json", str(path)]) == 0
    assert "\ntrain_gated T=40 d=24 F=96 k=5 float32" in capsys.readouterr().out
    data = json.loads(path.read_text())
    jsonschema.validate(data, schema())
    assert data["settings"]["cpu_time"] is True
    rows = {(row["op"], row["contender"]): row for row in data["rows"]}
    assert {op for op, _ in rows} == {"train_batch_topk", "train_gated"}
    for op in ("train_batch_topk", "train_gated"):
        for contender in ("saekernels", "saekernels, torch's Adam", "torch, dense"):
            row = rows[op, contender]
            assert (row["status"], row["rounds"]) == ("ok", 2)
            assert row["ratio_to_ours"] == pytest.approx(row["median_ms"] / rows[op, "saekernels"]["median_ms"])
    assert main(["bench", "compare", str(path), str(path)]) == 0
    assert capsys.readouterr().out.count("1.00x") >= 2


def test_cpu_time_counts_what_threads_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = []
    monkeypatch.setattr(runner.timing, "interleave", lambda calls, clock, **_: clocks.append(clock) or {})
    case = runner.Case(OPS["decode"], Shape(4, 8, 32, 4), torch.float32)
    for cpu_time in (False, True):
        runner.run_case(case, runner.Settings(cpu_time=cpu_time))
    assert clocks == [time.perf_counter, time.process_time]


@pytest.mark.usefixtures("rough_ceilings")
def test_an_interrupted_run_keeps_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, argv = tmp_path / "r.json", ["bench", "cpu", "--ops", "decode", "--shapes", "7,8,32,4", "5,8,32,4"]
    argv = [*argv, "9,8,32,4", "--dtypes", "float32", "--rounds", "1", "--json", str(path)]
    whole, left = runner.run_case, [2]

    def until_interrupted(*arguments: Any) -> list[Row]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(runner, "run_case", until_interrupted)
    assert main(argv) == 130
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == f"saekernels bench: interrupted, {path} was written, of the cases until then"
    data = json.loads(path.read_text())
    jsonschema.validate(data, schema())
    assert list(dict.fromkeys(row["shape"]["T"] for row in data["rows"])) == [7, 5]
    assert all(row["share_of_bound"] for row in data["rows"] if row["status"] == "ok")
    assert "T=5 d=8 F=32 k=4" in out
    left[0], path = 0, tmp_path / "none.json"
    assert main([*argv[:-1], str(path)]) == 130
    assert capsys.readouterr().err.endswith("saekernels bench: interrupted, nothing was written\n")
    assert not path.exists()


BAD = {
    "another device": (["abacus"], "'abacus'"),
    "op": (["cpu", "--ops", "decode,recode"], "no op 'recode'"),
    "class": (
        ["train", "--classes", "topk,x"],
        "no class 'x'; need some of topk, batch_topk, matryoshka, jumprelu, standard, gated",
    ),
    "thresholds below 0": (
        ["train", "--classes", "topk,jumprelu", "--shapes", "1,4,8,8"],
        "train_jumprelu: got k = 8 of 8 latents, need at most half of them active",
    ),
    "loss shape of a step": (["train", "--shapes", "2,3,4"], "--shapes: got 2,3,4, train_topk needs T,d,F,k"),
    "shape": (["cpu", "--shapes", "1,2"], "need T,d,F,k or T,d,V, positive whole numbers, got '1,2'"),
    "shape of letters": (["cpu", "--shapes", "1,2,x,4"], "got '1,2,x,4'"),
    "k": (["cpu", "--shapes", "1,2,3,4"], "need k <= F"),
    "zero k": (["cpu", "--shapes", "1,2,3,0"], "positive whole numbers"),
    "dtype": (["cpu", "--dtypes", "float64"], "no dtype 'float64'"),
    "threads": (["cpu", "--threads", "0"], "need at least 1, got 0"),
    "rounds": (["cpu", "--rounds", "few"], "need a whole number, got 'few'"),
    "budget": (["cpu", "--budget", "-1"], "need a positive number of seconds, got '-1'"),
    "budget nan": (["cpu", "--budget", "nan"], "need a positive number of seconds"),
    "shapes of another op": (["cpu", "--ops", "loss", "--shapes", "1,2,30,4"], "got 1,2,30,4, loss needs T,d,V"),
    "quick and shapes": (["cpu", "--quick", "--shapes", "1,2,30,4"], "--quick and --shapes"),
    "directory": (["cpu", "--quick", "--json", "/"], "--json: cannot write /: it is a directory"),
    "no directory": (["cpu", "--quick", "--csv", "/no/such/place.csv"], "does not exist"),
    "same file": (["cpu", "--quick", "--csv", "x", "--json", "x"], "--json and --csv: both are x"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, message = BAD[name]
    assert message in fails(capsys, ["bench", *argv])


def test_without_rich(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"T": 16, "d": 8, "F": 64, "k": 4}
    rows = [Row("decode", "float32", sizes, "saekernels", "ok", "", 2.0, 0.1, 9, None, None, 1.0, share_of_bound=0.5)]
    rows.append(
        Row("decode", "float32", sizes, "torch embedding_bag", "ok", "", 3.0, 0.1, 9, 1.5, 1.5, 1.0, share_of_bound=0.5)
    )
    machine = {"model": "a CPU", "flags": [], "threads": 2, "backend": "cpu", "simd_level": "avx2", "screening": "fp32"}
    versions = {"saekernels": "0", "torch": "2"}
    record = Record("2026-11-24", None, None, versions, machine, {}, "rss", Roofs(100.0, 100.0, 10.0, 10.0), rows)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(bench, "run", lambda settings, say: record)
    assert main(["bench", "cpu"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("torch embedding_bag"))
    assert row.split()[2:6] == ["3.00", "0.10", "9", "1.50x"]
    assert "1.50x faster than torch embedding_bag" in out
    assert max(map(len, out.splitlines())) < 100
