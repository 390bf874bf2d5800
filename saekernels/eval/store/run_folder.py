"""Where an evaluation keeps what it has done, so that the same command can go on after a kill: windows, sums, state.

State is saved between chunks of documents, whole or not at all (blocks.py says which); sums per document are written
before it, and what a killed run had written beyond its last state is written again. So a resumed run has the bits of
one that was not interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from saekernels.errors import InputError, first_line
from saekernels.eval.store.ranks import RankLostError, Ranks
from saekernels.files import atomic
from saekernels.files import sealed as seals
from saekernels.files.checked import read_json

_CONFIG = "config.json"
_LOCK = "lock"
_TEMPORARY: set[Path] = set()


class Workspace:
    """A folder of one evaluation. `kept`: it outlives the run, so state is worth saving, every `save_every` seconds."""

    def __init__(self, folder: Path, kept: bool, save_every: float = 10.0) -> None:
        self.folder, self.kept, self.save_every = folder, kept, save_every

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Save tensors and plain values, whole or not at all. Raises InputError if there is no room for them."""
        try:
            with seals.writing(path) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:  # torch's archive writer hides the reason in a RuntimeError
            raise InputError(f"checkpoint: cannot write {path}: {_why(error)}") from error

    def load(self, path: Path) -> dict[str, Any]:
        """What was saved there. Raises InputError for a damaged file."""
        try:
            seals.check(path)
            return torch.load(path, weights_only=True)
        except Exception as error:  # a damaged file can fail in any way
            raise damaged(path, error) from error


def damaged(path: Path, error: BaseException | str) -> InputError:
    """The error for a file of a workspace that cannot be what was written there."""
    why = error if isinstance(error, str) else first_line(error)
    return InputError(f"checkpoint: {path} cannot be read: {why}; delete {path.parent}")


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """An OSError inside is an InputError that says what of a workspace cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"checkpoint: cannot write {path}: {error.strerror or error}") from error


def _why(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


@contextlib.contextmanager
def open_workspace(
    folder: str | os.PathLike[str] | None, config: dict[str, Any], ranks: Ranks | None = None
) -> Iterator[Workspace]:
    """The folder of an evaluation with this configuration, to go on where it was left; a temporary one for None.

    The first process makes and locks it; the others must see the same folder, and evaluate the same.
    Raises InputError if the folder belongs to another evaluation (naming what differs), is in use, cannot be made, or
    is not shared by all processes.
    """
    ranks = ranks or Ranks()
    wanted = json.loads(json.dumps(config))
    with contextlib.ExitStack() as stack:

        def opened() -> str:
            place = _temporary() if folder is None else _kept(Path(folder))
            path = stack.enter_context(place)
            _check_config(path, wanted)
            return str(path.resolve())

        path = Path(ranks.once(opened))
        ranks.agree(None if ranks.first else _not_shared(path, wanted, ranks.rank))
        if folder is None:
            _TEMPORARY.add(path)  # whoever ends last of this machine's processes removes it
        try:
            yield Workspace(path, kept=folder is not None)
            ranks.wait()
        except RankLostError:
            discard_temporary()
            raise
        finally:
            _TEMPORARY.discard(path)


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="saekernels-"))
    _TEMPORARY.add(path)
    try:
        yield path
    finally:
        _TEMPORARY.discard(path)
        shutil.rmtree(path, ignore_errors=True)


def discard_temporary() -> None:
    """Remove the temporary folders of this process before it ends itself at once."""
    while _TEMPORARY:
        shutil.rmtree(_TEMPORARY.pop(), ignore_errors=True)


def check_folder(path: str | os.PathLike[str] | None) -> None:
    """InputError where something else than a folder is in the place of one; None was not asked for."""
    if path is not None and os.path.lexists(path) and not os.path.isdir(path):
        raise InputError(f"checkpoint: {os.fspath(path)} is no folder, need one, or a new name")


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[Path]:
    check_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / _LOCK, "w")  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise InputError(f"checkpoint: cannot use {path}: {getattr(error, 'strerror', None) or error}") from error
    with lock:
        _lock(lock, path)
        yield path


def _not_shared(path: Path, wanted: dict[str, Any], rank: int) -> str | None:
    """Why a process cannot take part in the evaluation in this folder; only the first one reads the documents."""
    try:
        found = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (
            f"checkpoint: rank {rank} does not see {path}, where the first rank works; "
            "give --checkpoint DIR on a file system that all ranks share"
        )
    differing = [key for key in wanted if key != "documents" and found.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        return f"{key}: rank {rank} has {wanted[key]!r:.60}, the first rank {found.get(key)!r:.60}"
    return None


def _lock(file: Any, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no locks on this system; two runs in one folder are then not noticed
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"checkpoint: {path} is in use by another evaluation") from error


def _check_config(path: Path, wanted: dict[str, Any]) -> None:
    file = path / _CONFIG
    if file.is_file():
        try:
            found = read_json(file)
        except (OSError, ValueError) as error:
            raise damaged(file, error) from error
        if not isinstance(found, dict) or not found.keys() >= {"layout", "model", "saes"}:
            raise damaged(file, "it holds no settings of an evaluation")
        for key in sorted({*found, *wanted}):
            _refuse_other(path, key, found.get(key), wanted.get(key))
        return
    for entry in path.glob(atomic.TEMPORARIES):  # what a killed run had not given its name yet
        entry.unlink(missing_ok=True)
    if any(entry.name != _LOCK for entry in path.iterdir()):
        (path / _LOCK).unlink(missing_ok=True)
        raise InputError(f"checkpoint: {path} is not empty and holds no evaluation; give another folder")
    with written(file):
        atomic.write_whole(file, json.dumps(wanted, indent=1).encode())


def _refuse_other(path: Path, key: str, found: Any, wanted: Any) -> None:
    """InputError where a setting, or of several by name the first, is another."""
    if found == wanted:
        return
    if isinstance(found, dict) and isinstance(wanted, dict):
        for part in sorted({*found, *wanted}):
            _refuse_other(path, f"{key} {part}", found.get(part), wanted.get(part))
    raise InputError(
        f"checkpoint: {path} belongs to another evaluation: {key} was {found!r:.120}, is {wanted!r:.120}; "
        "give another folder, or delete it"
    )
