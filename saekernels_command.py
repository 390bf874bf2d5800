"""The command `saekernels`, as a module of its own: Ctrl-C while the package is imported, which takes seconds, is
answered as it is later.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130


def main() -> int:
    """`saekernels.cli.main`, and the same line and exit code for Ctrl-C before there is one."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where Ctrl-C is ignored (nohup)
    if ours:
        signal.signal(signal.SIGINT, _stop)
    from saekernels.cli import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _stop(signum: int, frame: FrameType | None) -> None:
    # Not an exception: an import would turn it into an ImportError, or swallow it.
    os.write(2, b"saekernels: interrupted, nothing was written\n")
    os._exit(INTERRUPTED)
