"""Passes over chunks: the sums have the same bits however they are shared out, killed and taken up again."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saekernels.eval import InputError
from saekernels.eval.store import resumable as blocks
from saekernels.eval.store.ranks import Ranks
from saekernels.eval.store.resumable import Pass, blocks_of
from saekernels.eval.store.run_folder import Workspace


class Total:
    """Adds up numbers whose sum depends on its order, and counts them."""

    def __init__(self) -> None:
        self.sum = torch.zeros(2, dtype=torch.float64)
        self.seen = 0

    def add(self, chunk: int) -> None:
        generator = torch.Generator().manual_seed(chunk)
        self.sum += torch.randn(2, dtype=torch.float64, generator=generator) * 10.0 ** (chunk % 7)
        self.seen += 1

    def state(self) -> dict[str, Any]:
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def merge(self, state: dict[str, Any]) -> None:
        self.sum = self.sum + state["sum"]
        self.seen += state["seen"]


class Member(Ranks):
    """One of several ranks that a test runs one after the other."""

    def __init__(self, index: int, count: int) -> None:
        super().__init__()
        self.index, self.count = index, count


class Killed(Exception):
    pass


def run(folder: Path, chunks: int, count: int = 1, dies_after: int | None = None) -> Total | None:
    """A run of `count` ranks, all of which die after so many chunks together."""
    place = Workspace(folder, kept=True, save_every=0.0)
    work = [Pass(place, "x", chunks, Total(), Member(index, count)) for index in range(count)]
    left = dies_after

    def step(total: Total, chunk: int) -> None:
        nonlocal left
        if left is not None:
            if left == 0:
                raise Killed
            left -= 1
        total.add(chunk)

    try:
        for one in reversed(work[1:]):  # what Pass.run does before the ranks wait for each other
            for block, done in one._starts.items():
                one._run_block(block, done, lambda _, chunk, one=one: step(one.subject, chunk))
        work[0].run(lambda _, chunk: step(work[0].subject, chunk))
    except Killed:
        return None
    return work[0].subject


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(1, 7), st.integers(0, 14)), max_size=3),
    st.integers(1, 5),
    st.sampled_from([1, 2, 5, 20]),
)
def test_sums_depend_on_the_chunks_alone(chunks: int, killed: list[tuple[int, int]], count: int, most: int) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as whole,
        tempfile.TemporaryDirectory() as parts,
    ):
        patch.setattr(blocks, "BLOCKS", most)
        want, folder = run(Path(whole), chunks), Path(parts)
        for ranks, dies_after in killed:
            if run(folder, chunks, ranks, dies_after) is not None:
                break
        got = run(folder, chunks, count)
        again = run(folder, chunks, count, dies_after=0)
        left = [path.name for path in folder.iterdir()]
    assert want is not None
    assert got is not None
    assert again is not None
    assert got.seen == want.seen == again.seen == chunks
    assert torch.equal(got.sum, want.sum)
    assert torch.equal(again.sum, want.sum)
    assert left == ["x.pt"], "what is finished is one file"


@given(st.integers(1, 100_000))
def test_blocks_are_all_chunks_in_order_and_few(chunks: int) -> None:
    found = blocks_of(chunks)
    assert len(found) <= blocks.BLOCKS
    assert found[0].start == 0
    assert found[-1].stop == chunks
    assert all(a.stop == b.start and len(a) == len(found[0]) for a, b in itertools.pairwise(found))
    assert 0 < len(found[-1]) <= len(found[0])


def test_few_sums_are_on_disk_at_a_time(tmp_path: Path) -> None:
    place, most = Workspace(tmp_path, kept=True), 0
    total = Total()

    def step(block: int, chunk: int) -> None:
        nonlocal most
        most = max(most, len(list(tmp_path.iterdir())))
        total.add(chunk)

    Pass(place, "x", 64, total, Ranks()).run(step)
    assert total.seen == 64
    assert 0 < most <= 6


def test_state_is_saved_at_its_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(blocks, "BLOCKS", 1)
    place, saved = Workspace(tmp_path, kept=True, save_every=2.5), []
    total = Total()

    def done() -> int:
        path = tmp_path / "x-begun-0.pt"
        return int(place.load(path)["chunks"]) if path.is_file() else 0

    def step(block: int, chunk: int) -> None:
        nonlocal now
        now += 1.0
        total.add(chunk)
        saved.append(done())
        if chunk == 6:
            raise Killed

    with pytest.raises(Killed):
        Pass(place, "x", 9, total, Ranks()).run(step)
    assert saved == [0, 0, 0, 3, 3, 3, 6]
    assert done() == 6
    again, resumed = Total(), []
    work = Pass(place, "x", 9, again, Ranks())
    assert work.left == 3
    work.run(lambda _, chunk: (resumed.append(chunk), again.add(chunk))[0])
    assert resumed == [6, 7, 8]
    assert again.seen == 9


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_truncated_file_of_sums_is_named(cut: int, tmp_path: Path) -> None:
    run(tmp_path, 4, dies_after=3)
    path = min(tmp_path.glob("x-*.pt"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=rf"checkpoint: .*{path.name} cannot be read: .*; delete {tmp_path}"):
        run(tmp_path, 4)


def test_a_full_disk_is_named_and_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"checkpoint: cannot write .*x-0-0.pt: No space left on device"):
        run(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []
