"""Output files appear whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from saekernels.eval import InputError
from saekernels.files import atomic
from saekernels.files.checked import check_writable, same_file, write_whole


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
    with pytest.raises(InputError, match="File name too long"):
        check_writable(tmp_path / ("n" * 300))
    with pytest.raises(InputError, match="null byte"):
        check_writable(tmp_path / "a\0b")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="symbolic links"):
        check_writable(loop)


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    real, link, fresh = tmp_path / "there" / "real", tmp_path / "link", tmp_path / "there" / "fresh"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to(fresh)
    write_whole(dangling, "first")
    assert dangling.is_symlink()
    assert fresh.read_text() == "first"
    assert sorted(os.listdir(real.parent)) == ["fresh", "real"]


def test_a_pipe_is_written_to_and_survives(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_writable(pipe)
    got: list[str] = []
    # Opened for both, so that neither side waits for ever if the other never comes.
    held = os.open(pipe, os.O_RDWR)
    reader = threading.Thread(target=lambda: got.append(os.read(held, 100).decode()), daemon=True)
    reader.start()
    write_whole(pipe, "through")
    reader.join(timeout=10)
    os.close(held)
    assert got == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_what_stdout_was_sent_to_keeps_what_was_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stdout"
    stdout = os.open(path, os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(atomic, "_STANDARD_STREAMS", (stdout,))
    os.write(stdout, b"the table\n")
    write_whole(path, "the report\n")
    os.write(stdout, b"the end\n")
    os.close(stdout)
    assert path.read_text() == "the table\nthe report\nthe end\n"


def test_the_longest_name_that_a_file_can_have(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_whole(path, "text")
    assert path.read_text() == "text"


def test_several_files_are_all_written_before_one_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = [tmp_path / "a", tmp_path / "b"]
    for path in old:
        path.write_text("old")
    with pytest.raises(OSError, match="missing"):
        atomic.write_all({old[0]: b"new", tmp_path / "missing" / "c": b"new", old[1]: b"new"})
    assert [path.read_text() for path in old] == ["old", "old"]
    assert len(os.listdir(tmp_path)) == 2


def test_same_file(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    assert same_file(link, real), "one place, though nothing is there yet"
    real.touch()
    os.link(real, tmp_path / "hard")
    assert same_file(tmp_path / "hard", link)
    assert not same_file(real, tmp_path / "other")


def test_a_name_that_is_not_unicode_does_not_lose_the_page(tmp_path: Path) -> None:
    write_whole(tmp_path / "page", "texts/\udcff.txt")
    assert (tmp_path / "page").read_text() == "texts/?.txt"
