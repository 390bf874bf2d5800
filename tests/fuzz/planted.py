"""Targets with one fault each, for tests/suite/test_fuzz.py: what the fuzzer must find, in processes of its own."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from fuzz.engine import ACCEPTED, Rejected, Target

ODD = 5  # the case in which it goes wrong


def _numbered(rng: random.Random) -> int:
    """Cases of a target count up, in a folder, because each may be its process's last."""
    folder = Path(os.environ["FUZZ_PLANTED"])
    number = len(list(folder.iterdir()))
    (folder / str(number)).touch()
    return number


def wrong(rng: random.Random) -> str:
    assert _numbered(rng) != ODD, "a wrong answer"
    return ACCEPTED


def untyped(rng: random.Random) -> str:
    if _numbered(rng) == ODD:
        raise ZeroDivisionError
    raise Rejected


def crash(rng: random.Random) -> str:
    if _numbered(rng) == ODD:
        os.kill(os.getpid(), signal.SIGSEGV)
    return ACCEPTED


def hang(rng: random.Random) -> str:
    if _numbered(rng) == ODD:
        time.sleep(600)
    return ACCEPTED


TARGETS: dict[str, Target] = {"wrong": wrong, "untyped": untyped, "crash": crash, "hang": hang}
