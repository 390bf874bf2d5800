"""The commands of the records of docs/results.md: each parses, and reads SAEs where a training has put them."""

from __future__ import annotations

import itertools
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from places import ROOT
from saekernels.cli.entry import build_parser

SCRIPT = ROOT / "tools" / "real_model" / "records.py"


def folders(train: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Where a command of training writes."""
    monkeypatch.setattr(sys, "argv", words[1:])
    given = train["arguments"](train["options"]())
    sites = [one.replace("*", str(layer)) for one in given.sites for layer in (range(30) if "*" in one else [0])]
    variants = train["recipes"](given, given.latents)
    seeds = [f"seed-{seed}" for seed in given.seeds] if len(given.seeds) > 1 else [""]
    return {given.out / Path(*parts) for parts in itertools.product(sites, variants, seeds)}


def test_every_record_has_a_command_and_every_sae_a_training(
    monkeypatch: pytest.MonkeyPatch, results_modules: None
) -> None:
    from results.page import RECORDS

    found = runpy.run_path(str(SCRIPT))["commands"]()
    assert sorted(found) == sorted(RECORDS)
    train = runpy.run_path(str(ROOT / "examples" / "train_saes.py"))
    trained: set[Path] = set()
    read: dict[str, list[Path]] = {}
    for name, words in found.items():
        if name.startswith("train"):
            trained |= folders(train, words, monkeypatch)
            continue
        assert words[-2:] == ["--json", f"{name}.json"]
        if "--sae" not in words:
            assert name in ("ngrams", "floor-example")
            assert name != "ngrams" or words[words.index("--report") + 1] == "sites.json"
            continue
        after = words[words.index("--sae") + 1 :]
        read[name] = [Path(one.partition("=")[2]) for one in itertools.takewhile(lambda one: one[:2] != "--", after)]
        if words[0] == "saekernels":
            given = build_parser().parse_args(words[1:])
            assert (given.leave_first, given.leave_norm) == (1, 10.0)
            assert [path for _, path in given.sae] == [str(path) for path in read[name]]
    assert {name: len(paths) for name, paths in read.items()} == {
        "sites": 30, "head50k": 30, "baselines": 30, "tasks": 1, "probe": 1, "error": 7, "curve": 9, "controls": 15,
        "shuffled": 1, "seeds": 3, "transcoders": 10, "floor": 3, "bfloat16": 30,
        "floor-sweep": 30,
    }  # fmt: skip
    assert set(itertools.chain.from_iterable(read.values())) == trained


def test_commands_are_printed_for_a_shell() -> None:
    def told(*names: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(SCRIPT), *names], capture_output=True, text=True)

    (line,) = told("shuffled").stdout.splitlines()
    assert line.startswith("saekernels eval --model SmolLM2-135M-Instruct --context 256 ")
    assert "'model.layers.14#none-0=controls/model.layers.14/freeze-none/seed-0'" in line
    assert str(ROOT / "examples" / "train_saes.py") in told("train").stdout
    assert "NAME: got nonsense, need some of train, sites" in told("sites", "nonsense").stderr
