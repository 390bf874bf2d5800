"""Starts scripts as several processes on this machine: under torchrun, or forked, which is quicker."""

from __future__ import annotations

import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from places import HELPERS, ROOT, SCRIPTS

PATIENCE = 600  # seconds


def environment() -> dict[str, str]:
    """One thread for each process; the tests' own modules importable."""
    paths = [str(HELPERS), str(HELPERS / "subjects"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "PYTHONFAULTHANDLER": "1"}


def torchrun(ranks: int, *command: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of torchrun of a script with its arguments."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launcher, *command],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@functools.cache
def _server() -> subprocess.Popen[str]:
    """forked.py, once for all tests of this process."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / "forked.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
    )


def forked(ranks: int, *command: str, dismantled: bool = False) -> tuple[list[int], str, str]:
    """(exit codes by rank, stdout, stderr) of a script with its arguments in so many processes.

    dismantled: their end is that of a program, at which modules go and files are closed; else they just stop.
    """
    with tempfile.TemporaryDirectory() as made, selectors.DefaultSelector() as answers:
        out, err = Path(made, "out"), Path(made, "err")
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        asked = {"command": command, "ranks": ranks, "out": str(out), "err": str(err), "dismantled": dismantled}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        answers.register(server.stdout, selectors.EVENT_READ)
        if not answers.select(PATIENCE):
            os.killpg(server.pid, signal.SIGKILL)  # with all that it started
            _server.cache_clear()
            raise AssertionError(f"no end after {PATIENCE} s: {err.read_text()[-3000:] if err.exists() else ''}")
        return json.loads(server.stdout.readline()), out.read_text(), err.read_text()


def alone(code: str, *arguments: str, dismantled: bool = False) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of that code with its arguments in a process of its own, of one thread.

    It costs no imports: those at its top, and what earlier code imported, are in the process already.
    """
    with tempfile.TemporaryDirectory() as made:
        script = Path(made, "script.py")
        script.write_text(code)
        codes, out, err = forked(1, str(script), *arguments, dismantled=dismantled)
    return codes[0], out, err


def check(ranks: int, *command: str) -> str:
    """stdout of a script that must succeed in so many processes."""
    codes, out, err = forked(ranks, *command)
    assert codes == [0] * ranks, err[-4000:]
    return out


def leave() -> None:
    """End a script's part in its group (saekernels.cli.options.processes says why not at once)."""
    import time

    from torch import distributed

    distributed.destroy_process_group()
    time.sleep(0.3)
