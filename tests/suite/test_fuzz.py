"""The fuzzer finds what it is for, and a slice of it over every op and reader finds nothing."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz import engine, mutate
from fuzz.targets import TARGETS
from places import TESTS
from saekernels.backends import registry

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory and reads /proc")
SCRIPT = TESTS / "fuzz"


@pytest.fixture(autouse=True)
def the_native_backend_as_it_was() -> Iterator[None]:
    """Cases choose a SIMD level and a screen for the whole process."""
    yield
    native = registry.load("cpu")
    if native.available() is None:
        native.set_simd_level("auto")
        native.set_screening("auto")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("wrong", "a wrong answer"),
        ("untyped", "ZeroDivisionError"),
        pytest.param("crash", "the process ended with -11", marks=pytest.mark.slow),
        pytest.param("hang", "no end after 2 s", marks=pytest.mark.slow),
    ],
)
def test_a_planted_fault_is_found_and_the_other_cases_go_on(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUZZ_PLANTED", str(tmp_path))
    assert engine.run([name], 0, 12, 120.0, 1, "fuzz.planted", patience=2.0) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED") == 1
    assert told in out
    assert f"python tests/fuzz --seed 0 --case 5 --only {name}" in out
    assert "12 cases in" in out, "those behind it were run, too"


def test_what_finds_nothing_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_PLANTED", str(tmp_path))
    assert engine.run(["wrong"], 0, 5, 120.0, 1, "fuzz.planted") == 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "checkpoints of a run")) for name in TARGETS]
)
def test_a_slice_of_every_target_in_this_process(name: str) -> None:
    """Each case the same whenever it runs: 25 of them, of which some are accepted."""
    found = [engine.one(TARGETS[name], name, 11, case) for case in range(25)]
    assert set(found) <= {engine.ACCEPTED, engine.REJECTED}
    assert engine.ACCEPTED in found or name in ("families", "wrong arguments", "tasks", "text", "SAE files")
    assert found[:5] == [engine.one(TARGETS[name], name, 11, case) for case in range(5)]


def test_damage_differs_from_what_was_whole() -> None:
    import random

    whole = bytes(range(200))
    made = [mutate.data(random.Random(seed), whole) for seed in range(200)]
    assert sum(one != whole for one in made) > 180
    assert len(set(made)) > 180


@pytest.mark.parametrize("options", [["--cases", "0"], ["--minutes", "nan"], ["--workers", "-1"], ["--only", "x"]])
def test_arguments_that_would_run_nothing_are_refused(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert stop.value.code == 2
    assert re.search(r"error: argument --\w+: ", capsys.readouterr().err)
