"""Output files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from saekernels.eval import InputError
from saekernels.eval.files import check_writable, write_whole


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_whole(path, "é\n")
    write_whole(path, "second\n")
    assert path.read_bytes() == b"second\n"
    assert os.listdir(tmp_path) == ["out.json"]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.json"]


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.json")
    assert os.listdir(tmp_path) == []


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        check_writable(tmp_path / "missing" / "out.json")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="does not exist"):
        check_writable(tmp_path / "file" / "out.json")
