"""Long runs: killed and begun again they end the same; memory does not grow with the text."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ranks
import tiny_lm
from interrupted import after, figures, in_small_chunks, run
from places import SCRIPTS
from saekernels.eval import Document, InputError

SCRIPT = str(SCRIPTS / "killed_script.py")


def finished(folder: str) -> tuple[str, list[int]]:
    """The figures of an evaluation that goes on in that folder, and the steps that it took."""
    lines = ranks.check(1, SCRIPT, folder, "0").splitlines()
    return lines[-1], [int(line) for line in lines[:-1]]


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_ends_the_same(tmp_path: Path) -> None:
    want, steps = finished("")
    folder = str(tmp_path / "run")
    for kill_after in (2, 15, 60):
        codes, out, err = ranks.forked(1, SCRIPT, folder, str(kill_after))
        assert codes == [-signal.SIGALRM], err[-3000:]
        assert kill_after <= len(out.splitlines()) < len(steps)
    got, resumed = finished(folder)
    assert got == want, "the same numbers to the last digit"
    assert len(resumed) < len(steps) / 2, "what was done is not done again"
    again, nothing = finished(folder)
    assert again == want
    assert len(nothing) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"tokens": 100}, "tokens was None, is 100"),
        ({"saes": {"model.layers.0": tiny_lm.sae(7)}}, "saes .* was"),
        ({"documents": [Document(tiny_lm.CODE)]}, "documents was"),
        ({"baselines": ("zero",)}, "baselines was"),
    ],
)
def test_another_evaluation_is_not_continued(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(InputError, match=f"belongs to another evaluation: {message}"):
        run(tmp_path / "run", **changes)


def test_folders_that_cannot_serve_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"checkpoint: .*file is no folder, need one"):
        run(tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty and holds no evaluation"):
        run(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir() if p.name != "lock"] == ["thesis.tex"]
    run(tmp_path / "run")
    (tmp_path / "run" / "figures.pt").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"figures.pt cannot be read: .*; delete"):
        run(tmp_path / "run")


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    """A second one while the first is at its first step; locks are of open files, not of processes."""
    told: list[str] = []

    def again() -> None:
        with pytest.raises(InputError, match="in use by another evaluation") as caught:
            run(tmp_path / "run")
        told.append(str(caught.value))

    run(tmp_path / "run", progress=after(1, again))
    assert len(told) == 1


MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
import tiny_lm
from saekernels.eval import Document, evaluate
def texts(count):
    for i in range(count):
        yield Document(tiny_lm.PARAGRAPH * 40, str(i % 3))
model, saes = tiny_lm.model(), {tiny_lm.SITES[0]: tiny_lm.sae()}
small = {"bootstrap": 50, "baselines": ("mean",), "cumulative": False, "batch_size": 32}
evaluate(model, tiny_lm.tokenizer(), saes, texts(2), **small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = evaluate(model, tiny_lm.tokenizer(), saes, texts(int(sys.argv[1])), **small)
print(made.tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow  # half a minute; CI runs it
def test_memory_does_not_grow_with_the_text() -> None:
    grown = {}
    # Tensors that are freed go back at once, whatever glibc has learned to keep: what is left is what is held.
    environment = {**ranks.environment(), "MALLOC_MMAP_THRESHOLD_": "65536"}
    for count in (8, 40):
        command = [sys.executable, "-c", MEMORY, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        tokens, kilobytes = map(int, done.stdout.split())
        grown[tokens] = kilobytes
    few, many = sorted(grown)
    assert many > 4.5 * few
    # The windows of the longer text alone are more than this in tensors.
    assert grown[many] - grown[few] < 6_000, grown


def test_json_of_a_run_in_a_folder_is_that_of_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_chunks(100, monkeypatch.setattr)
    assert json.dumps(figures(run(tmp_path / "run"))) == json.dumps(figures(run(None)))
