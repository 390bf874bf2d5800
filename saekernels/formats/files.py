"""Reading and writing checkpoint files: every failure is a FormatError that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekernels.formats.looking import opened

# What wrappers put before every name: DataParallel, and modules that hold an SAE and nothing else.
_PREFIXES = ("module.", "autoencoder.", "sae.", "model.")
_POINTER = b"version https://git-lfs"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class FormatError(ValueError):
    """A checkpoint that cannot be read or written, with the file and the reason."""


class DamagedError(FormatError):
    """A file of weights that cannot be read at all, in whatever format."""


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("reading checkpoints needs safetensors: pip install 'saekernels[eval]'") from error
    return safetensors


def refuse_pointer(path: Path) -> None:
    """Raise where Git LFS, or a clone without it, left a few lines of text in the place of a file."""
    try:
        with path.open("rb") as file:
            pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:  # for whoever reads it to tell
        return
    if pointer:
        raise DamagedError(f"{path}: a pointer of Git LFS, need the file itself: git lfs pull")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory, by their own names."""
    library = _safetensors()
    opened(path)
    refuse_pointer(path)
    try:
        return without_prefix(library.torch.load_file(path))
    except (OSError, library.SafetensorError, ValueError, KeyError) as error:
        raise DamagedError(f"{path}: damaged or not a safetensors file: {error}") from error


def without_prefix(found: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, without what a wrapper put before all names of tensors, and without torch.compile's `_orig_mod`.

    A prefix that only some tensors have is part of their names, and stays.
    """
    left = {".".join(part for part in name.split(".") if part != "_orig_mod"): value for name, value in found.items()}
    if len(left) < len(found):
        return dict(found)
    names = [name for name, value in left.items() if isinstance(value, Tensor)]
    prefix = next((one for one in _PREFIXES if names and all(name.startswith(one) for name in names)), None)
    if prefix is None:
        return left
    return without_prefix(
        {name.removeprefix(prefix) if isinstance(value, Tensor) else name: value for name, value in left.items()}
    )


class Tensors:
    """The tensors of a file, taken one by one with the shape that the config promises.

    found: by name; None reads them from the safetensors file at `path`. names: of all of them, sorted.
    """

    def __init__(self, path: Path, found: Mapping[str, Tensor] | None = None) -> None:
        self.path = path
        self._left: dict[str, Tensor] = dict(found) if found is not None else read_safetensors(path)
        self.names = sorted(self._left)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def shape(self, name: str, dimensions: int = 2) -> tuple[int, ...]:
        """The shape of a tensor that tells sizes no config holds; none of them 0."""
        if name not in self._left:
            raise FormatError(f"{self.path}: tensor {name!r} is missing; the file has {self.names}")
        shape = tuple(self._left[name].shape)
        if len(shape) != dimensions or 0 in shape:
            need = f"{dimensions} dimensions" if 0 not in shape else "no dimension of size 0"
            raise FormatError(f"{self.path}: tensor {name!r} has shape {list(shape)}, need {need}")
        return shape

    def dimensions(self, name: str) -> int:
        """How many dimensions a tensor has; 0 if it is not there."""
        return self._left[name].dim() if name in self._left else 0

    def size(self, name: str) -> int:
        """How many elements a tensor has; 0 if it is not there."""
        return self._left[name].numel() if name in self._left else 0

    def number(self, name: str) -> float | None:
        """The value of a tensor of one element; None if it is not there."""
        value = self._left.get(name)
        if value is not None and value.numel() != 1:
            raise FormatError(f"{self.path}: tensor {name!r} has shape {list(value.shape)}, need one number")
        return None if value is None else float(value)

    def total(self, name: str) -> int | None:
        """The sum of a tensor of counts; None if it is not there."""
        value = self._left.get(name)
        return None if value is None else int(value.sum())

    def drop(self, *names: str) -> None:
        """Leave these out: statistics that the function does not need."""
        for name in names:
            self._left.pop(name, None)

    def take(self, name: str, *shape: int) -> Tensor:
        """The float tensor `name` of this shape."""
        if name not in self._left:
            raise FormatError(f"{self.path}: tensor {name!r} is missing; the file has {self.names}")
        value = self._left.pop(name)
        if tuple(value.shape) != shape:
            raise FormatError(
                f"{self.path}: tensor {name!r} has shape {list(value.shape)}, the config needs {list(shape)}"
            )
        if value.dtype not in FLOATS:
            raise FormatError(f"{self.path}: tensor {name!r} has dtype {value.dtype}, need a floating dtype")
        return value

    def done(self, *later: str) -> None:
        """Raise if a tensor was not taken: it would have been ignored in silence. later: these will be."""
        if left := sorted(set(self._left) - set(later)):
            raise FormatError(f"{self.path}: unexpected tensors {left} for this architecture")


def json_to_bytes(config: Mapping[str, object], argument: str) -> bytes:
    """A config file's content; `argument` is where a value that JSON does not have can only have come from."""
    try:
        return (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{argument}: cannot be written as JSON: {error}") from error


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file's content."""
    return _safetensors().torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file and sync it; whether it appears whole is the caller's to see to."""
    _safetensors().torch.save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def refuse_k(k: int | None, path: Path) -> None:
    """Raise where a k was given for a checkpoint that holds its own."""
    if k is not None:
        raise FormatError(f"k: got {k}, but {path} says itself how many latents are active")


def refuse_scale(input_scale: float | None, path: Path) -> None:
    """Raise where a scale was given for a format whose SAEs take activations as they are, or hold their scale."""
    if input_scale is not None:
        raise FormatError(f"input_scale: got {input_scale}, but SAEs like {path} need none")
