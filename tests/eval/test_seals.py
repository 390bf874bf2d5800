"""Checksums of a run's files: any change of any byte is noticed, where the run would otherwise end in other figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_lm
from saekernels.eval import InputError, evaluate
from saekernels.eval.store import window_files as spool
from saekernels.eval.store.run_folder import Workspace
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


def run(folder: Path, stop_after: int | None = None) -> dict[str, object]:
    steps = 0

    def progress(done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if steps == stop_after:
            raise KeyboardInterrupt

    given = tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes(), tiny_lm.documents()
    report = evaluate(*given, bootstrap=4, checkpoint=folder, progress=progress)
    return {**report.to_dict(), "run": None}


def in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "CHUNK_POSITIONS", 60)
    monkeypatch.setattr(spool, "_CONTEXTS", 0)
    monkeypatch.setattr(Workspace.__init__, "__defaults__", (0.0,))


@pytest.mark.parametrize(
    "pattern", ["figures-*.pt", "moments.pt", "documents-*.f64", "windows-*.npz", "documents.json"]
)
def test_a_number_that_changed_on_the_disk_is_noticed(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit in the middle, which leaves archives readable."""
    in_small_chunks(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stop_after=70)
    path = max((tmp_path / "run").glob(pattern))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    with pytest.raises(InputError, match=rf"{path.name} cannot be read: .*damaged"):
        run(tmp_path / "run")
    path.write_bytes(whole)
    assert run(tmp_path / "run") == run(tmp_path / "whole")


@pytest.mark.parametrize("what", ["missing", "empty", "short"])
def test_sums_that_a_killed_machine_lost_are_not_taken_for_zero(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_chunks(monkeypatch)
    monkeypatch.setattr("saekernels.eval.store.resumable.BLOCKS", 2)  # several chunks in each
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stop_after=70)
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
    assert run(folder) == run(tmp_path / "whole")
    assert not (folder / ".saekernels.abcd.tmp").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").touch()
    with pytest.raises(InputError, match="is not empty and holds no evaluation"):
        run(tmp_path / "mine")
