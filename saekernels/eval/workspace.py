"""Where an evaluation keeps what it has done, so that the same command can go on after a kill: windows, sums, state.

State is saved between chunks of documents, whole or not at all; the sums per document are appended before it, and what
a killed run had appended beyond its last state is written again. So a resumed run has the bits of one that was not
interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from saekernels import atomic

from .errors import InputError, first_line

_CONFIG = "config.json"
_LOCK = "lock"


class Saved(Protocol):
    """Something whose state can be saved and loaded."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class Workspace:
    """A folder of one evaluation. `kept`: it outlives the run, so state is worth saving, every `save_every` seconds."""

    def __init__(self, folder: Path, kept: bool, save_every: float = 10.0) -> None:
        self.folder, self.kept, self.save_every = folder, kept, save_every

    def stages(self, name: str, chunks: int, subject: Saved, step: Callable[[int], None]) -> None:
        """step(chunk) for every chunk that is not done, with the subject's state saved between chunks."""
        path = self.folder / f"{name}.pt"
        first = 0
        if path.is_file():
            saved = _load(path)
            subject.load(saved["state"])
            first = saved["chunks"]
        last_save = time.monotonic()
        for chunk in range(first, chunks):
            step(chunk)
            finished = chunk + 1 == chunks
            if self.kept and (finished or time.monotonic() - last_save >= self.save_every):
                buffer = io.BytesIO()
                torch.save({"chunks": chunk + 1, "state": subject.state()}, buffer)
                atomic.write_whole(path, buffer.getvalue())
                last_save = time.monotonic()

    def done(self, name: str) -> int:
        """Chunks of that stage that an earlier run has done."""
        path = self.folder / f"{name}.pt"
        return int(_load(path)["chunks"]) if path.is_file() else 0


class Journal:
    """Sums of every document on disk, [documents, cells, columns] fp64, in the order of the documents."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self.shape = path, shape
        if not path.exists():
            path.touch()

    def write(self, first: int, sums: np.ndarray) -> None:
        """The records of documents first, first + 1, ...; over whatever is there."""
        with open(self.path, "r+b") as file:
            file.seek(first * self.shape[1] * self.shape[2] * 8)
            file.write(np.ascontiguousarray(sums, dtype=np.float64).tobytes())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> np.ndarray:
        """All records, mapped into memory page by page."""
        return np.memmap(self.path, dtype=np.float64, mode="r", shape=self.shape)


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(f"checkpoint: {path} cannot be read: {first_line(error)}; delete {path.parent}") from error


@contextlib.contextmanager
def open_workspace(folder: str | os.PathLike[str] | None, config: dict[str, Any]) -> Iterator[Workspace]:
    """The folder of an evaluation with this configuration, to go on where it was left; a temporary one for None.

    Raises InputError if the folder belongs to another evaluation (naming what differs), is in use, or cannot be made.
    """
    if folder is None:
        temporary = tempfile.mkdtemp(prefix="saekernels-")
        try:
            yield Workspace(Path(temporary), kept=False)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / _LOCK, "w")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"checkpoint: cannot use {path}: {error.strerror or error}") from error
    with lock:
        _lock(lock, path)
        _check_config(path, config)
        yield Workspace(path, kept=True)


def _lock(file: Any, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no locks on this system; two runs in one folder are then not noticed
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"checkpoint: {path} is in use by another evaluation") from error


def _check_config(path: Path, config: dict[str, Any]) -> None:
    file = path / _CONFIG
    wanted = json.loads(json.dumps(config))
    if file.is_file():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"checkpoint: {file} cannot be read: {first_line(error)}; delete {path}") from error
        differing = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
        if differing:
            key = differing[0]
            raise InputError(
                f"checkpoint: {path} belongs to another evaluation: {key} was {found.get(key)!r:.60}, "
                f"is {wanted.get(key)!r:.60}; give another folder, or delete it"
            )
        return
    if any(entry.name != _LOCK for entry in path.iterdir()):
        raise InputError(f"checkpoint: {path} is not empty and holds no evaluation; give another folder")
    atomic.write_whole(file, json.dumps(wanted, indent=1).encode())


def fingerprint(module: nn.Module) -> str:
    """A short digest of a module's parameters and buffers: all names, shapes and types, and values at a stride."""
    digest = hashlib.sha256()
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 4096)]
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
