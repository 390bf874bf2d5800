"""What can be wrong with a command's inputs, by kind: files, folders, outputs, texts, numbers, sites.

A maker takes a folder of its own and the good path that it stands for, and gives the argument's text.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Maker = Callable[[Path, Path], str]

RUBBISH = bytes(range(256)) * 4
SHAPES: dict[str, Any] = {
    "null": None,
    "a number": 3,
    "text": "x",
    "a list": [],
    "lists": [[1, [2]]],
    "nothing": {},
    "other keys": {"a": {"b": [None]}},
    "NaN": {"schema": float("nan"), "k": float("inf")},
    "huge": {"schema": 10**40, "version": -1},
}
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\n",
    "rubbish": RUBBISH,
    "zeros": bytes(1000),
    "no UTF-8": '{"text": "naïve"}\n'.encode("latin-1"),
    "nested without end": b"[" * 100_000,
    **{f"JSON, {name}": json.dumps(value).encode() for name, value in SHAPES.items()},
}


def _suffix(good: Path) -> str:
    return "".join(good.suffixes[-2:]) if good.suffix in (".gz", ".zst") else good.suffix


def _named(name: str) -> Maker:
    return lambda folder, good: f"{folder}/{name}{_suffix(good)}"


def _file(content: bytes) -> Maker:
    def make(folder: Path, good: Path) -> str:
        made = folder / f"bad{_suffix(good)}"
        made.write_bytes(content)
        return str(made)

    return make


def _link(target: str) -> Maker:
    def make(folder: Path, good: Path) -> str:
        made = folder / f"link{_suffix(good)}"
        made.symlink_to(made if target == "itself" else folder / target)
        return str(made)

    return make


def _below_a_file(folder: Path, good: Path) -> str:
    (folder / "file").write_bytes(b"x")
    return str(folder / "file" / good.name)


def _cut(folder: Path, good: Path) -> str:
    content = good.read_bytes()
    return _file(content[: len(content) // 2])(folder, good)


def _locked(folder: Path, good: Path) -> str:
    made = _cut(folder, good)
    os.chmod(made, 0)
    return made


def _folder(folder: Path, good: Path) -> str:
    made = folder / f"folder{_suffix(good)}"
    made.mkdir()
    return str(made)


NAMES: dict[str, Maker] = {
    "missing": _named("missing"),
    "in a missing folder": _named("no/such"),
    "below a file": _below_a_file,
    "empty": lambda folder, good: "",
    "with a NUL": _named("a\0b"),
    "long": _named("n" * 5000),
    "of two lines": _named("two\nlines"),
    "no Unicode": _named("\udcff"),
    "a loop": _link("itself"),
    "a dangling link": _link("nothing"),
}
FILES: dict[str, Maker] = {
    **NAMES,
    "a folder": _folder,
    "cut": _cut,
    **{name: _file(content) for name, content in CONTENTS.items() if name != "empty"},
    "without content": _file(b""),
    **({} if os.geteuid() == 0 else {"locked": _locked}),
}
FOLDERS: dict[str, Maker] = {**NAMES, "a folder": _folder, "a file": _file(RUBBISH)}
# Names that no output can have; the folder that is there already is one for some.
OUTPUTS: dict[str, Maker] = {name: NAMES[name] for name in ("below a file", "empty", "with a NUL", "long", "a loop")}
OUTPUT_FILES: dict[str, Maker] = {
    **OUTPUTS, "in a missing folder": NAMES["in a missing folder"], "a folder": _folder,
}  # fmt: skip


def within(name: str) -> dict[str, Maker]:
    """A checkpoint's folder in which the file `name` is wrong, or not there."""

    def changed(change: Maker) -> Maker:
        def make(folder: Path, good: Path) -> str:
            made = folder / "copy"
            shutil.copytree(good, made)
            bad = change(folder, made / name)
            (made / name).unlink()
            if os.path.lexists(bad):
                os.rename(bad, made / name)
            return str(made)

        return make

    kinds = ("missing", "a dangling link", "a folder", "cut", "without content", "rubbish", *CONTENTS)
    return {f"{name}, {kind}": changed(FILES[kind]) for kind in dict.fromkeys(kinds) if kind in FILES}


RECORDS = b'{"text": "a few words of some text"}\n{"text": "and a few more of them"}\n'
# suffix -> kind -> content of a file of texts that holds no text, or damage.
TEXTS: dict[str, dict[str, bytes]] = {
    ".txt": {"empty": b"", "rubbish": RUBBISH, "UTF-16": "some text".encode("utf-16")},
    ".jsonl": {
        **CONTENTS,
        "cut": RECORDS[:-9],
        "UTF-16": RECORDS.decode().encode("utf-16"),
        "a number for a text": b'{"text": 3}\n',
        "a list for a text": b'{"text": ["a"]}\n',
        "half of a surrogate pair": b'{"text": "\\ud800 a b c d"}\n',
        "negative ids": b'{"input_ids": [-1, 3, 4]}\n',
        "huge ids": b'{"input_ids": [1, 3, 4000000000000000000000]}\n',
        "fractional ids": b'{"input_ids": [1.5, 3]}\n',
        "ids beyond the vocabulary": b'{"input_ids": [1, 3, 4000]}\n',
        "lists of ids": b'{"input_ids": [[1, 3]]}\n',
        "a number of 5,000 digits": b'{"text": "abc def", "n": ' + b"9" * 5000 + b"}\n",
        "no full window": b'{"text": "a"}\n',
    },
    ".jsonl.gz": {
        "not gzip": RECORDS,
        "cut": gzip.compress(RECORDS)[:-9],
        "a wrong sum": gzip.compress(RECORDS)[:-8] + bytes(8),
        "rubbish in it": gzip.compress(RUBBISH),
        "rubbish behind it": gzip.compress(RECORDS) + b"junk",
    },
    ".jsonl.zst": {"not zstd": RECORDS},
    ".json": {**CONTENTS, "cut": b'[{"text": "a b c"}, {"te'},
    ".json.gz": {"not gzip": RECORDS},
    ".csv": {"empty": b"", "no text": b"a,b\n1,2\n", "another number of fields": b'text,b\n"a b c d"\n1,2,3,4\n'},
    ".tsv": {"empty": b"", "rubbish": RUBBISH},
    ".parquet": {"empty": b"", "rubbish": RUBBISH, "cut": b"PAR1" + bytes(40)},
}  # fmt: skip
NUMBERS = ("x", "-1", "nan", "9" * 5000, "", "1.5", "inf", "0x10", "1e400", "½", "1,2")
HUGE = ("9223372036854775807", "1000000000000000000000000000000")
# What no site of any model is, and what is one that an SAE of that width does not fit.
SITES = (
    "x", "model.layers", "model.layers.-1", "model..layers", "model.", "model.layers.0@x", "model.layers.0 -> x",
    "model.layers.0[head=99]", "model.layers.0[stream=1]", "model.layers.0[batch=2]", "@input", "é", "a\0b",
    "blocks.9.hook_resid_post", "blocks.0.attn.hook_pattern", "model.layers.1 -> model.layers.0", "model.rotary_emb",
    "model.layers.0.mlp.act_fn", "lm_head", "lm_head@input", "model.embed_tokens@input",
)  # fmt: skip


def wrong_values(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The config with one field of another type or size at a time, or without it."""
    for key in config:
        for value in (None, "x", -1, 0, 1.5, [], {}, True, float("nan")):
            if value != config[key]:
                yield f"{key}: {value!r}", {**config, key: value}
        yield f"no {key}", {name: one for name, one in config.items() if name != key}
