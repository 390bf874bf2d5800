"""What goes wrong from outside: memory that runs out, damaged files of a run, a disk that is full."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ranks
import saekernels.cli.commands.eval as command
from cli import arguments
from interrupted import begin, figures, in_small_chunks, run
from saekernels.cli import main
from saekernels.eval import InputError

LIMITED = """
import resource, sys
import interrupted, torch
import saekernels.cli.commands.eval as command
from saekernels.cli import main
torch.set_num_threads(1)
interrupted.in_small_chunks(40)
genuine = command.evaluate
def no_more():
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 1_000_000, resource.RLIM_INFINITY))
    torch.empty(64 * 2**20)  # what a larger batch would need
command.evaluate = lambda *given, **options: genuine(*given, **{**options, "progress": interrupted.after(8, no_more)})
sys.exit(main(sys.argv[1:]))
"""


def options(files: dict[str, Path], folder: Path) -> list[str]:
    return arguments(files, json=[f"{folder}.json"], checkpoint=[folder])


def outcome(folder: Path) -> dict[str, Any]:
    return {**json.loads(Path(f"{folder}.json").read_text()), "run": None}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_memory_that_runs_out_is_told_and_the_run_goes_on(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    code, _, err = ranks.alone(LIMITED, *options(files, folder))
    assert code == 4, err[-2000:]
    assert len(err.splitlines()) == 1
    assert "out of memory; a smaller --batch-size" in err
    assert f"what was done is in {folder}, and the same command goes on from there" in err
    assert not Path(f"{folder}.json").exists()
    assert list(folder.glob("moments*.pt")), "something was done"
    in_small_chunks(40, monkeypatch.setattr)
    assert main(options(files, folder)) == 0
    assert main(options(files, tmp_path / "whole")) == 0
    capsys.readouterr()
    assert outcome(folder) == outcome(tmp_path / "whole")


def test_other_failures_are_not_called_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(command, "evaluate", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["eval", "--tokens", "100"])


def test_memory_of_a_gpu_that_runs_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    def full(*given: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it.")

    monkeypatch.setattr(command, "evaluate", full)
    assert main(["eval", "--tokens", "100"]) == 4
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "Tried to allocate 2.00 GiB" in told
    assert "what was done" not in told


def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_chunks(60, monkeypatch.setattr)
    folder = tmp_path / "run"
    begin(folder, 60)
    for name in ("windows-*.npz", "documents.json", "config.json", "figures-*.pt", "moments.pt"):
        path = max(folder.glob(name))
        before = path.read_bytes()
        for after in (before[: len(before) // 2], b"", bytes(255 - b for b in before)):
            path.write_bytes(after)
            with pytest.raises(InputError, match=rf"checkpoint: .*{path.name} cannot be read: .*; delete .*run"):
                run(folder)
        path.write_bytes(before)
    assert run(folder).tokens > 0, "and mended it goes on"


def test_sums_of_documents_that_are_cut_short_are_named(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "documents.f64"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"documents\.f64 cannot be read: it is cut short"):
        run(tmp_path / "run")


@pytest.mark.parametrize("what", ["windows", "documents", "sums"])
def test_a_full_disk_while_the_run_writes(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told with the file's name; nothing under a final name that is not whole; with room again it goes on."""
    full = OSError(28, "No space left on device")

    def fail(*given: Any, **options: Any) -> None:
        raise full

    want = figures(run(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        if what == "windows":
            patch.setattr(np, "savez", fail)
        elif what == "documents":
            patch.setattr("saekernels.files.atomic.write_whole", lambda path, data: fail())
        else:
            patch.setattr("torch.save", fail)
        with pytest.raises(InputError, match=r"checkpoint: cannot write .*: No space left on device"):
            run(tmp_path / "run")
        left = [path for path in (tmp_path / "run").iterdir() if path.name != "lock"]
        assert not [path for path in left if path.suffix == ".tmp"]
    assert figures(run(tmp_path / "run")) == want


NO_ROOM = """
import resource, sys
import saekernels.cli.options.report_files as command
import tiny_lm
from saekernels.cli import main
genuine = command.write_whole
def write_whole(path, text):  # a file system that takes 4 kB more
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, resource.RLIM_INFINITY))
    genuine(path, text)
command.write_whole = write_whole
sys.exit(main(sys.argv[1:]))
"""
KILLED = """
import os, signal, sys
import saekernels.cli.options.report_files as command
import tiny_lm
from saekernels.cli import main
genuine, fsync = command.write_whole, os.fsync
def write_whole(path, text):
    os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)  # all is written, and has no name yet
    genuine(path, text)
command.write_whole = write_whole
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of POSIX")
@pytest.mark.parametrize("before", [None, "an older report"])
@pytest.mark.parametrize(("code", "outcome"), [(NO_ROOM, 2), (KILLED, -9)], ids=["no room", "killed"])
def test_a_report_that_cannot_be_written_leaves_no_part_of_it(
    code: str, outcome: int, before: str | None, files: dict[str, Path], tmp_path: Path
) -> None:
    """By the kernel's own refusal, and by kill -9 in the middle: the old file or none, and what to do."""
    path, folder = tmp_path / "report.json", tmp_path / "run"
    if before is not None:
        path.write_text(before)
    command = arguments(files, checkpoint=[folder], json=[path], baselines=["none"])
    ended, out, err = ranks.alone(code, *command)
    assert ended == outcome, err[-2000:]
    assert (path.read_text() if path.exists() else None) == before
    assert "SAEs together raises the loss" in out, "what was measured was printed"
    if outcome == 2:
        told = err.splitlines()[-1]
        assert f"cannot write {path}: File too large; nothing was written; all figures are in {folder}, and" in told
        assert not list(tmp_path.glob("*.tmp"))
        assert not list(tmp_path.glob(".*.tmp"))
    assert main(command) == 0, "the same command again: nothing is computed anew"
    assert json.loads(path.read_text())["schema"] == 1
