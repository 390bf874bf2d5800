"""`.pt`, `.pth` and `.npz` files, read without running anything in them.

torch's weights_only unpickler makes tensors, numbers, strings and containers of them, and nothing else; numpy reads
arrays with pickles switched off. Every failure is a FormatError that names the file.
"""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.formats.files import DamagedError, FormatError, Tensors, refuse_pointer, without_prefix
from saekernels.formats.looking import is_looking, opened

# Entries that training scripts keep weights and configs under.
_WEIGHTS = ("state_dict", "model_state_dict", "sae_state_dict", "model", "sae", "autoencoder")
_CONFIGS = ("cfg", "config", "args", "hparams", "hyper_parameters")

# Entries that some format reads as tensors.
_TENSOR = re.compile(
    r"(en|de)coder(_linear)?\.(weight|bias)|((pre|latent|decoder|gate|mag)_)?bias|k|group_sizes|scaling_factor|r_mag|"
    r"_?W_(enc|dec|gate|skip|E|D)|b_(enc|dec|dec_out|gate|mag|pre|E|D)|(\w+\.)?(log_)?(jumprelu_)?(threshold|theta)"
)
# Entries of a training run beside its weights, which say nothing of their function.
_PROGRESS = ("epoch", "step", "global_step", "iteration", "loss", "version", "pytorch-lightning_version")

_LARGE = 2**20  # bytes
# What the zipfile module raises: for damage, for methods it does not know, for an archive with a password.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def read_pt(path: Path) -> Mapping[str, Any]:
    """The dictionary in a torch file."""
    opened(path)
    refuse_pointer(path)
    try:
        mapped = is_looking() and _is_zip(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = "it holds other objects than tensors, which are never unpickled" if _is_zip(path) else "damaged"
        raise DamagedError(f"{path}: not a readable torch file: {reason}") from error
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise DamagedError(f"{path}: damaged or not a torch file: {_first(error)}") from error
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise FormatError(f"{path}: got {type(found).__name__}, need a dictionary of tensors by name")
    return found


def unwrapped(path: Path, found: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """(tensors by their own names, the config that lies with them) of a torch file's dictionary.

    Weights may be an entry of it, their names may have a wrapper's prefix; where several entries could be them,
    everything stays where it is. Raises FormatError for what stands where a tensor has to and is none.
    """
    config: dict[str, Any] = {}
    for name in _CONFIGS:
        value = found.get(name)
        if isinstance(value, Mapping) and not any(isinstance(one, Tensor) for one in value.values()):
            config.update((key, one) for key, one in value.items() if isinstance(key, str))
    inner = [found[name] for name in _WEIGHTS if isinstance(found.get(name), Mapping)]
    inner = [one for one in inner if any(isinstance(value, Tensor) for value in one.values())]
    for key, value in found.items():
        plain = isinstance(value, str | bool | int | float) and key not in _PROGRESS and not _TENSOR.fullmatch(key)
        if plain and config.setdefault(key, value) != value:
            raise FormatError(f"{path}: {key!r} is {value!r:.40}, but elsewhere in it {config[key]!r:.40}")
    if len(inner) == 1 and not any(isinstance(value, Tensor) and value.dim() > 1 for value in found.values()):
        found = {str(key): value for key, value in inner[0].items()}
    return as_tensors(path, without_prefix(found)), config


def as_tensors(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """A torch file's dictionary with tensors where readers look for tensors: numbers, and lists of them, are as exact.

    Raises FormatError, which names the entry, for what cannot be one, and for tensors that are not dense in memory.
    """
    return {name: _checked(path, name, value) for name, value in found.items()}


def _checked(path: Path, name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        kinds = {"nested": value.is_nested, "on the meta device": value.is_meta, "quantised": value.is_quantized,
                 "sparse": not value.is_nested and value.layout is not torch.strided}  # fmt: skip
        if kind := next((kind for kind, true in kinds.items() if true), None):
            raise FormatError(f"{path}: tensor {name!r} is {kind}, need a dense tensor that holds values")
        return value
    if value is None or not _TENSOR.fullmatch(name):
        return value
    try:
        made = torch.tensor(value, dtype=torch.float64 if _holds_float(value) else None)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        made = None
    if made is None or made.dtype is torch.bool:
        raise FormatError(f"{path}: entry {name!r} is {type(value).__name__} ({value!r:.40}), need a tensor")
    single = made.float()
    return single if made.is_floating_point() and torch.equal(single.double(), made) else made


def _holds_float(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list | tuple) and any(map(_holds_float, value)))


def tensors_of(path: Path, found: Mapping[str, Any]) -> Tensors:
    """The tensors of a dictionary, to be taken by name and shape; other values are left out."""
    return Tensors(path, {name: value for name, value in found.items() if isinstance(value, Tensor)})


def read_npz(path: Path) -> Tensors:
    """The arrays of a numpy archive."""
    opened(path)
    refuse_pointer(path)
    try:
        with np.load(path, allow_pickle=False) as data:
            mapped = _mapped(path) if is_looking() else {}
            read = {name: np.ascontiguousarray(data[name]) for name in data.files if name not in mapped}
            return Tensors(path, {name: torch.from_numpy(value) for name, value in {**read, **mapped}.items()})
    except (OSError, ValueError, TypeError, KeyError, EOFError, *_ZIP_ERRORS) as error:
        other = "it holds other objects than arrays, which are never unpickled"
        reason = other if "pickle" in str(error) else _first(error)
        raise DamagedError(f"{path}: damaged or not a numpy archive: {reason}") from error


def _mapped(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Of a numpy archive the large arrays that lie in it as they are, mapped into memory, unchecked."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size < _LARGE:
                continue
            # Behind 30 bytes of the local header come its name and its extra field, whose lengths are its last.
            file.seek(member.header_offset + 26)
            lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
            file.seek(lengths, 1)
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_column, dtype = header(file)
            order: Any = "F" if by_column else "C"
            array = np.memmap(path, dtype, mode="c", offset=file.tell(), shape=shape, order=order)
            found[member.filename.removesuffix(".npy")] = array
    return found


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except OSError:
        return False


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
