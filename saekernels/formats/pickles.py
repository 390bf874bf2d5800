"""`.pt`, `.pth` and `.npz` files, read without running anything in them.

torch's weights_only unpickler makes tensors, numbers, strings and containers of them, and nothing else; numpy reads
arrays with pickles switched off. Every failure is a FormatError that names the file.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.formats.files import FormatError, Tensors

# What the zipfile module raises: for damage, for methods it does not know, for an archive with a password.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def read_pt(path: Path) -> Mapping[str, Any]:
    """The dictionary in a torch file."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds other objects than tensors, which are never unpickled" if _is_zip(path) else "damaged"
        raise FormatError(f"{path}: not a readable torch file: {reason}") from error
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise FormatError(f"{path}: damaged or not a torch file: {_first(error)}") from error
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise FormatError(f"{path}: got {type(found).__name__}, need a dictionary of tensors by name")
    return found


def tensors_of(path: Path, found: Mapping[str, Any]) -> Tensors:
    """The tensors of a dictionary, to be taken by name and shape; other values are left out."""
    return Tensors(path, {name: value for name, value in found.items() if isinstance(value, Tensor)})


def read_npz(path: Path) -> Tensors:
    """The arrays of a numpy archive."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return Tensors(path, {name: torch.from_numpy(np.ascontiguousarray(data[name])) for name in data.files})
    except (OSError, ValueError, TypeError, KeyError, EOFError, *_ZIP_ERRORS) as error:
        raise FormatError(f"{path}: damaged or not a numpy archive: {_first(error)}") from error


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except OSError:
        return False


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
