"""Starts scripts and commands under torchrun, as several processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from places import HELPERS, ROOT


def environment() -> dict[str, str]:
    """One thread for each process; the tests' own modules importable."""
    paths = [str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "PYTHONFAULTHANDLER": "1"}


def start(ranks: int, *command: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """torchrun of a script with its arguments, or of "-m", a module and its arguments."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [*torchrun, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=cwd or ROOT,
    )


def run(ranks: int, *command: str, timeout: float = 240) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `start`, waited for."""
    process = start(ranks, *command)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {timeout} s: {err[-3000:]}") from None
    return process.returncode, out, err


def check(ranks: int, *command: str) -> str:
    """stdout of a run that must succeed."""
    code, out, err = run(ranks, *command)
    assert code == 0, err[-4000:]
    return out


def leave() -> None:
    """End a script's part in its group (saekernels.cli.options.processes says why not at once)."""
    import time

    from torch import distributed

    distributed.destroy_process_group()
    time.sleep(0.3)
