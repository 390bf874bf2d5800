"""A checkpoint's config: which of its fields were read, so that what nobody knows can be told."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from saekernels.formats.files import FormatError, refuse_pointer
from saekernels.formats.looking import opened

MAX_CONFIG_BYTES = 16 * 2**20
MAX_INTEGER = 2**31 - 1


class Config(Mapping[str, Any]):
    """The fields of a config file. Every look at one counts as reading it; `unknown` names those that nobody read."""

    def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
        self.path = path
        self._fields = dict(fields)
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def replaced(self, **fields: Any) -> Config:
        """The same config, and what was read of it, with these fields in place of its own."""
        made = Config(self.path, {**self._fields, **fields})
        made._read = self._read | set(fields)
        return made

    def inner(self, key: str) -> Config:
        """The object in a field as a config of its own; empty where there is none."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise FormatError(f"{self.path}: {key!r} is {type(value).__name__}, need an object")
        return Config(self.path, value)

    def kept(self, *keys: str) -> dict[str, Any]:
        """Those of these fields that are there and not null."""
        return {key: self[key] for key in keys if self.get(key) is not None}

    def unknown(self, without_effect: Collection[str]) -> tuple[str, ...]:
        """Fields that nobody read and that are not known to have no effect. Warns of them: they might have one.

        A field of no value (null, false, an empty text, list or object) asks for nothing.
        """
        left = [k for k, v in self._fields.items() if k not in self._read and k not in without_effect and v]
        if left:
            told = ", ".join(f"{key!r} ({self._fields[key]!r:.40})" for key in left)
            warnings.warn(f"{self.path}: fields that are not known here were not used: {told}", stacklevel=5)
        return tuple(left)


def read_json(path: Path) -> Config:
    """A JSON object."""
    return Config(path, _object(path, _content(path, "JSON", json.loads), "JSON"))


def read_yaml(path: Path) -> Config:
    """A YAML mapping, of plain values alone."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(f"reading {path} needs PyYAML: pip install 'saekernels[eval]'") from error

    def load(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error

    return Config(path, _object(path, _content(path, "YAML", load) or {}, "YAML"))


def _content(path: Path, kind: str, load: Any) -> Any:
    if not path.exists():
        raise FormatError(f"{path}: there is no such file, need it beside the weights")
    opened(path)
    refuse_pointer(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise FormatError(f"{path}: {path.stat().st_size} bytes is too large for a config")
        return load(path.read_text(encoding="utf-8"))
    except FormatError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not a readable {kind} config: {error}") from error


def _object(path: Path, content: Any, kind: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise FormatError(f"{path}: got a {kind} {type(content).__name__}, need an object")
    return content


def integer(config: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int:
    """A positive int of the config that a tensor can have as a size."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FormatError(f"{path}: {key!r} is {value!r:.40}, need a positive integer")
    if value > MAX_INTEGER:
        raise FormatError(f"{path}: {key!r} is {value!r:.40}, need at most 2^31 - 1")
    return value


def boolean(config: Mapping[str, Any], key: str, path: Path, default: bool = False) -> bool:
    """A bool of the config: the string "false" would count as true."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise FormatError(f"{path}: {key!r} is {value!r:.40}, need true or false")
    return value


def text(config: Mapping[str, Any], key: str, path: Path, default: str | None = None) -> str:
    """A string of the config."""
    value = config.get(key, default)
    if not isinstance(value, str):
        raise FormatError(f"{path}: {key!r} is {value!r:.40}, need a string")
    return value


def told(config: Mapping[str, Any], key: str, kind: type) -> Any:
    """A field that only informs: its value if it is of that type, else None."""
    value = config.get(key)
    return value if isinstance(value, kind) and isinstance(value, bool) == (kind is bool) else None
