"""Starts scripts as several processes on this machine: under torchrun, or forked, which is quicker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from places import HELPERS, ROOT, SCRIPTS


def environment() -> dict[str, str]:
    """One thread for each process; the tests' own modules importable."""
    paths = [str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "PYTHONFAULTHANDLER": "1"}


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
FORKED = (sys.executable, str(SCRIPTS / "forked.py"))


def run(ranks: int, *command: str, launcher: tuple[str, ...] = FORKED, timeout: float = 240) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a script with its arguments in so many processes, waited for."""
    process = subprocess.Popen(
        [*launcher, str(ranks), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with all that it started
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
