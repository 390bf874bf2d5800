"""Long runs: killed and begun again they end the same; memory does not grow with the text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny_lm
from places import HELPERS
from saekernels.eval import Document, InputError, evaluate
from saekernels.eval.store import window_files as spool

SCRIPT = """
import json, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import tiny_lm
from saekernels.eval import evaluate
from saekernels.eval.store import window_files as spool
from saekernels.eval.store.run_folder import Workspace
spool.CHUNK_POSITIONS, spool._CONTEXTS = 40, 0
Workspace.__init__.__defaults__ = (0.0,)
pause = float(sys.argv[2])
def progress(done, total):
    print(done, flush=True)
    time.sleep(pause)
report = evaluate(tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes(), tiny_lm.documents(), bootstrap=50,
                  checkpoint=sys.argv[1] or None, progress=progress)
print(json.dumps({{**report.to_dict(), "run": None}}, sort_keys=True))
"""


def start(folder: str, pause: float) -> subprocess.Popen[str]:
    code = SCRIPT.format(tests=str(HELPERS))
    return subprocess.Popen([sys.executable, "-c", code, folder, str(pause)], stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, list[int]]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    lines = out.splitlines()
    return lines[-1], [int(line) for line in lines[:-1]]


def test_killed_at_any_moment_and_run_again_it_ends_the_same(tmp_path: Path) -> None:
    want, steps = finish(start("", 0.0))
    folder = str(tmp_path / "run")
    for kill_after in (2, 15, 60):
        process = start(folder, 0.002)
        assert process.stdout is not None
        for _ in range(kill_after):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    got, resumed = finish(start(folder, 0.0))
    assert got == want, "the same numbers to the last digit"
    assert len(resumed) < len(steps) / 2, "what was done is not done again"
    again, nothing = finish(start(folder, 0.0))
    assert again == want
    assert len(nothing) <= 1


def run(folder: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"documents": tiny_lm.documents(), "saes": tiny_lm.saes(), "bootstrap": 20, **changes}
    saes, documents = options.pop("saes"), options.pop("documents")
    return evaluate(tiny_lm.trained_model(), tiny_lm.tokenizer(), saes, documents, checkpoint=folder, **options)


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
    with pytest.raises(InputError, match=r"checkpoint: cannot use .*file"):
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
    process = start(str(tmp_path / "run"), 0.05)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        with pytest.raises(InputError, match="in use by another evaluation"):
            run(tmp_path / "run")
    finally:
        process.kill()
        process.communicate()


MEMORY = """
import sys
sys.path.insert(0, {tests!r})
import resource, torch
torch.set_num_threads(1)
import tiny_lm
from saekernels.eval import Document, evaluate
def texts(count):
    for i in range(count):
        yield Document(tiny_lm.PARAGRAPH * 40, str(i % 3))
model, saes = tiny_lm.model(), tiny_lm.saes()
evaluate(model, tiny_lm.tokenizer(), saes, texts(2), bootstrap=50)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = evaluate(model, tiny_lm.tokenizer(), saes, texts(int(sys.argv[1])), bootstrap=50)
print(made.tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_text() -> None:
    grown = {}
    for count in (8, 40):
        code = MEMORY.format(tests=str(HELPERS))
        out = subprocess.run(
            [sys.executable, "-c", code, str(count)], capture_output=True, text=True, check=True
        ).stdout
        tokens, kilobytes = map(int, out.split())
        grown[tokens] = kilobytes
    few, many = sorted(grown)
    assert many > 4.5 * few
    # The windows of the longer text alone are more than this in tensors.
    assert grown[many] - grown[few] < 6_000, grown


def test_json_of_a_run_in_a_folder_is_that_of_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "CHUNK_POSITIONS", 100)
    monkeypatch.setattr(spool, "_CONTEXTS", 0)
    kept, temporary = run(tmp_path / "run").to_dict(), run(None).to_dict()  # type: ignore[arg-type]
    assert json.dumps({**kept, "run": None}) == json.dumps({**temporary, "run": None})
