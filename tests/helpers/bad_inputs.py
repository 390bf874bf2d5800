"""What goes wrong with a command's inputs: makers of bad files, folders, outputs, numbers and words, by kind.

A maker takes a folder of its own and the good path that it stands for, and gives the argument's text.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Maker = Callable[[Path, Path], str]

RUBBISH = bytes(range(256)) * 4
SHAPES: dict[str, Any] = {
    "null": None,
    "a number": 3,
    "text": "x",
    "a list": [],
    "a list of lists": [[1, [2]]],
    "an empty object": {},
    "other keys": {"a": {"b": [None]}},
    "NaN": {"schema": float("nan"), "k": float("inf")},
    "huge": {"schema": 10**40, "version": -1},
}


def _file(content: bytes, suffix: str = "") -> Maker:
    def make(folder: Path, good: Path) -> str:
        made = folder / f"bad{suffix or good.suffix}"
        made.write_bytes(content)
        return str(made)

    return make


def _loop(folder: Path, good: Path) -> str:
    made = folder / f"loop{good.suffix}"
    made.symlink_to(made)
    return str(made)


def _dangling(folder: Path, good: Path) -> str:
    made = folder / f"dangling{good.suffix}"
    made.symlink_to(folder / "nothing")
    return str(made)


def _cut(folder: Path, good: Path) -> str:
    content = good.read_bytes()
    return _file(content[: len(content) // 2])(folder, good)


def _locked(folder: Path, good: Path) -> str:
    made = folder / f"locked{good.suffix}"
    shutil.copy(good, made)
    made.chmod(0)
    return str(made)


def _folder(folder: Path, good: Path) -> str:
    made = folder / f"folder{good.suffix}"
    made.mkdir()
    return str(made)


NAMES: dict[str, Maker] = {
    "missing": lambda folder, good: str(folder / f"missing{good.suffix}"),
    "in a missing folder": lambda folder, good: str(folder / "no" / "such" / good.name),
    "below a file": lambda folder, good: str(Path(_file(b"x", ".x")(folder, good)) / good.name),
    "empty name": lambda folder, good: "",
    "NUL in its name": lambda folder, good: f"{folder}/a\0b{good.suffix}",
    "long name": lambda folder, good: f"{folder}/{'n' * 5000}{good.suffix}",
    "two lines": lambda folder, good: f"{folder}/two\nlines{good.suffix}",
    "no Unicode": lambda folder, good: f"{folder}/\udcff{good.suffix}",
    "a loop": _loop,
    "a dangling link": _dangling,
}
CONTENTS: dict[str, Maker] = {
    "empty": _file(b""),
    "blank": _file(b" \n\n"),
    "rubbish": _file(RUBBISH),
    "zeros": _file(bytes(1000)),
    "no UTF-8": _file('{"text": "naïve"}\n'.encode("latin-1")),
    "a byte order mark": _file(b"\xef\xbb\xbf{}"),
    "cut": _cut,
    "nested without end": _file(b"[" * 100_000),
    **{f"JSON: {name}": _file(json.dumps(value).encode()) for name, value in SHAPES.items()},
}
# Of these each is bad where a file is read; contents are bad where they are of one kind.
FILES: dict[str, Maker] = {**NAMES, "a folder": _folder, **CONTENTS}


def folders_of(name: str) -> dict[str, Maker]:
    """A checkpoint's folder in which the file `name` is one of CONTENTS, a folder, a link to nothing, or not there."""

    def within(change: Maker) -> Maker:
        def make(folder: Path, good: Path) -> str:
            made = folder / "copy"
            shutil.copytree(good, made)
            changed = change(folder, made / name)
            (made / name).unlink()
            if os.path.lexists(changed):
                os.rename(changed, made / name)
            return str(made)

        return make

    changes = {**CONTENTS, "missing": NAMES["missing"], "a dangling link": _dangling, "a folder": _folder}
    return {f"{name}, {kind}": within(change) for kind, change in changes.items()}


OUTPUTS: dict[str, Maker] = {
    kind: NAMES[kind]
    for kind in ("in a missing folder", "below a file", "empty name", "NUL in its name", "long name", "a loop")
} | {"a folder": _folder}

WHOLE_NUMBERS = ("", " ", "x", "1.5", "nan", "inf", "-1", "0", "9" * 5000, "0x10", "1e400", "--", "½")
HUGE = ("1000000000000000000000000000000", "9223372036854775807", "2147483648")
