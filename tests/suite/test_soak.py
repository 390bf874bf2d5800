"""The soak notices what it is for: memory, files and threads that grow, and bits that change."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from typing import IO

import pytest
import torch
from torch import Tensor

import soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def only_what_is_made_here() -> Iterator[None]:
    """Every round collects garbage: of what other tests of this process have left there is much to look through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_work_that_leaks_nothing_passes() -> None:
    threads = torch.get_num_threads()
    try:
        assert soak.soak(0, {"ops": soak.ops}, fewest=8) == []
    finally:
        torch.set_num_threads(threads)


def test_a_leak_of_each_kind_is_found() -> None:
    kept: list[Tensor] = []
    files: list[IO[str]] = []
    ended = threading.Event()

    def leaks_memory() -> list[Tensor]:
        kept.append(torch.ones(2**19))  # 2 MiB a round
        return []

    def leaks_files() -> list[Tensor]:
        files.append(open("/dev/null"))  # noqa: SIM115
        return []

    def leaks_threads() -> list[Tensor]:
        threading.Thread(target=ended.wait, daemon=True).start()
        return []

    try:
        (found,) = soak.soak(0, {"memory": leaks_memory}, fewest=16)
        assert found.startswith("mib grew from")
        (found,) = soak.soak(0, {"files": leaks_files}, fewest=8)
        assert found.startswith("files grew from")
        (found,) = soak.soak(0, {"threads": leaks_threads}, fewest=8)
        assert found.startswith("threads grew from")
    finally:
        ended.set()
        for file in files:
            file.close()


def test_other_bits_are_found() -> None:
    rounds = iter(range(100))
    assert soak.soak(0, {"work": lambda: [torch.tensor(float(next(rounds) == 5))]}, fewest=8) == [
        "round 5: work gave other bits than the first round"
    ]
