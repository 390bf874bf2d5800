"""Checksums of a run's files: any change of any byte is noticed, where the run would otherwise end in other figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interrupted import begin, figures, in_small_chunks, run
from saekernels.eval import InputError
from saekernels.files import sealed as seals


@given(content=st.binary(max_size=300), data=st.data())
def test_any_damage_is_noticed(content: bytes, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("seals") / "file"
    seals.write(path, content)
    assert seals.read(path) == content
    assert seals.check(path) == len(content)
    with seals.writing(path) as file:
        file.write(content)
    whole = path.read_bytes()
    assert seals.read(path) == content, "both ways write the same"
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytes([whole[at] ^ data.draw(st.integers(1, 255))])
    for damaged in (whole[:at], whole[:at] + changed + whole[at + 1 :], whole + b"\0", whole[1:]):
        path.write_bytes(damaged)
        for look in (seals.read, seals.check):
            with pytest.raises(ValueError, match="cut short or damaged"):
                look(path)


def test_what_is_not_written_to_its_end_takes_no_name(tmp_path: Path) -> None:
    with pytest.raises(KeyError), seals.writing(tmp_path / "file") as file:
        file.write(b"some")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_changed_on_the_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit in the middle, which leaves archives readable."""
    in_small_chunks(60, monkeypatch.setattr)
    begin(tmp_path / "run", 70)
    for pattern in ("figures-*.pt", "moments.pt", "documents-*.f64", "windows-*.npz", "documents.json"):
        path = max((tmp_path / "run").glob(pattern))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
        with pytest.raises(InputError, match=rf"{path.name} cannot be read: .*damaged"):
            run(tmp_path / "run")
        path.write_bytes(whole)
    assert figures(run(tmp_path / "run")) == figures(run(tmp_path / "whole"))


@pytest.mark.parametrize("what", ["missing", "empty", "short"])
def test_sums_that_a_killed_machine_lost_are_not_taken_for_zero(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_chunks(60, monkeypatch.setattr)
    monkeypatch.setattr("saekernels.eval.store.resumable.BLOCKS", 2)  # several chunks in each
    begin(tmp_path / "run", 70)
    assert list((tmp_path / "run").glob("figures-begun-*.pt")), "in the middle of a block"
    path = max((tmp_path / "run").glob("documents-*.f64"))
    whole = path.read_bytes()
    path.write_bytes({"missing": b"", "empty": b"", "short": whole[:-1]}[what])
    if what == "missing":
        path.unlink()
    with pytest.raises(InputError, match=rf"{path.name} cannot be read: it is (cut short|missing)"):
        run(tmp_path / "run")


def test_what_a_killed_run_left_half_written_is_no_obstacle(tmp_path: Path) -> None:
    """Killed while the folder's first file was written."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / ".saekernels.abcd.tmp").write_bytes(b"{")
    assert figures(run(folder)) == figures(run(tmp_path / "whole"))
    assert not (folder / ".saekernels.abcd.tmp").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").touch()
    with pytest.raises(InputError, match="is not empty and holds no evaluation"):
        run(tmp_path / "mine")
