"""The command line in the tests' own process: right arguments of every command, and what a failure looks like."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tiny_lm
from places import ROOT
from saekernels.cli import main
from saekernels.cli.entry import build_parser

SITE = tiny_lm.SITES[0]
_PLACES = {"a": 0, "b": 1, "model": 0, "source": 0, "path": 0, "out": 1}


def files(folder: Path) -> dict[str, Path]:
    """Inputs in that folder: the model's directory, SAE directories by site, and data."""
    paths = tiny_lm.save(folder)
    paths["data"] = folder / "eval.jsonl.gz"
    records = [{"text": d.text, "domain": d.domain, "source": d.source} for d in tiny_lm.documents()]
    paths["data"].write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    return paths


def labelled(folder: Path) -> Path:
    """A set of labelled texts in that folder: 32 of each class, in two languages."""
    path = folder / "labels.jsonl"
    kinds = (
        ("true", "the light", "x"),
        ("false", "sum(log)", "x"),
        ("true", "the coal", "y"),
        ("false", "len(log)", "y"),
    )
    records = [
        {"text": f"{end} and{' he' * number}", "label": label, "language": language}
        for label, end, language in kinds
        for number in range(1, 17)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def arguments(files: dict[str, Path], **changes: Any) -> list[str]:
    """`saekernels eval` of those files; changes are options by name, lists of their values, None to leave one out."""
    options: dict[str, Any] = {
        "--model": [files["model"]],
        "--sae": [f"{site}={files[site]}" for site in tiny_lm.SITES],
        "--data": [files["data"]],
        "--bootstrap": ["50"],
        **{f"--{name.replace('_', '-')}": value for name, value in changes.items()},
    }
    flat = (item for name, values in options.items() if values is not None for item in (name, *values))
    return ["eval", *map(str, flat)]


def fails(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Runs, expects exit code 2 and one line on stderr, and nothing on stdout; returns the line."""
    try:
        code = main(argv)
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert code == 2, (code, out, err)
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert "error: " in err, err
    assert "Traceback" not in err, err
    return err


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def run(argv: list[str]) -> Ended:
    """A command in this process; warnings count among what it says on stderr, as they would."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda *given, **_: err.write(warnings.formatwarning(*given[:4]))
        try:
            code = main(argv)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


def complaint(argv: list[str], names: str, outputs: Path) -> str | None:
    """What is wrong with how a command refuses; None if it does as it should. names: what its line must name."""
    try:
        found = run(argv)
    except BaseException as error:
        return f"ends in {type(error).__name__}: {error!s:.200}"
    if found.code != 2:
        return f"exit code {found.code}: {found.err[:200]}"
    if found.out or found.err.count("\n") != 1 or "error: " not in found.err or "Traceback" in found.err:
        return f"says {found.out[:200]!r} and {found.err[:400]!r}"
    if names.strip("-").lower() not in found.err.replace(str(outputs.parent), "").lower():
        return f"does not name {names}: {found.err[:200]}"
    return f"leaves {os.listdir(outputs)}" if outputs.exists() and os.listdir(outputs) else None


def commands(good: dict[str, Path], outputs: Path) -> dict[str, list[str]]:
    """Small runs of each command that succeed."""
    model = ["--model", str(good["model"]), "--data", str(good["data"])]
    both = ["--sae", *(f"{site}={good[site]}" for site in tiny_lm.SITES)]
    fast = ["--bootstrap", "0"]
    return {
        "eval": ["eval", *model, *both, *fast, "--tokens", "30", "--context", "8", "--baselines", "zero",
                 "--json", str(outputs / "o.json")],
        "breadth": ["breadth", *model, *both, *fast, "--tokens", "all", "--ranks", "1", "--context", "12"],
        "controls": ["controls", *model, *both, *fast, "--tokens", "all", "--json", str(outputs / "o.json")],
        "maps": ["maps", *model, *both, *fast, "--tokens", "all"],
        "probe": ["probe", *model[:2], *both, *fast, "--labels", str(good.get("labels"))],
        "reuse": ["reuse", *model, *both, "--tokens", "all", "--latents", "4", "--json", str(outputs / "o.json")],
        "over": ["over", *(f"{model[1]}-{step}" for step in (1, 2)), *both, *fast, *model[2:], "--tokens", "30",
                 "--parts", "none", "--json", str(outputs / "o.json")],
        "monitor": ["monitor", *model, *both, "--tokens", "30", "--watch", f"{SITE}:3"],
        "generate": ["generate", "the light", *model[:2], *both, "--max-new-tokens", "3", "--watch", SITE],
        "compat": ["eval", "--compat", "saelens", *model, *both, "--tokens", "60", "--context", "8",
                   "--batch-size", "2"],
        "compare": ["compare", str(good.get("report")), str(good.get("report")), *fast],
        "scaling fit": ["scaling", "fit", *model[:2], str(good["model"]), *model[2:], "--tokens", "100",
                        "--out", str(outputs / "family.json")],
        "convert": ["convert", str(good[SITE]), str(outputs / "sae")],
        "plan": ["plan", "--latents", "1000", "--tokens", "1e6"],
        "bench": ["bench", "--quick"],
        "bench cpu": ["bench", "cpu", "--quick", "--ops", "encode", "--rounds", "1", "--budget", "0.001"],
        "bench train": ["bench", "train", "--quick", "--classes", "topk", "--rounds", "1", "--budget", "0.001"],
        "bench gpu": ["bench", "gpu"],
        "bench check": ["bench", "check", "--device", "cpu"],
        "bench compare": ["bench", "compare", str(good.get("report")), str(good.get("report"))],
        "info": ["info"],
    }  # fmt: skip


def put(argv: list[str], command: str, option: str, value: str) -> list[str]:
    """The command line with another value of an option or of a positional argument."""
    if option in _PLACES:
        at = len(command.split()) + _PLACES[option]
        return [*argv[:at], value, *argv[at + 1 :]]
    given = [f"{option}={value}"] if value.startswith("-") else [option, value]
    if (command, option) == ("scaling fit", "--model"):
        given.append(value)  # it needs two
    if option not in argv:
        return [*argv, *given]
    at = argv.index(option)
    end = next((i for i in range(at + 1, len(argv)) if argv[i].startswith("--")), len(argv))
    return [*argv[:at], *given, *argv[end:]]


def options() -> Iterator[tuple[str, str, str]]:
    """(command, option, the name of its type) of all that take a value."""

    def walk(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, str, str]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, below in action.choices.items():
                    yield from walk(below, f"{name} {word}".strip())
            elif action.nargs != 0:
                kind = getattr(action.type, "func", action.type)  # of a partial, what it fills in
                yield name, (action.option_strings or [action.dest])[-1], getattr(kind, "__name__", "")

    yield from walk(build_parser(), "")


def inputs(folder: Path) -> dict[str, Path]:
    """Inputs that nothing is wrong with, by name, made in a folder."""
    paths = files(folder)
    paths |= {name: folder / f"{name}.json" for name in ("report", "family", "tokens")}
    paths["labels"] = labelled(folder)
    for step in (1, 2):
        shutil.copytree(paths["model"], folder / f"model-{step}")
    paths["tasks"] = ROOT / "examples/tasks/brackets.yaml"
    paths["tokens"].write_text(json.dumps({str(paths["model"]): 1000}))
    small = {"bootstrap": [0], "tokens": [200], "baselines": ["zero"]}
    assert run(arguments(paths, json=[paths["report"]], **small)).code == 0
    fit = commands(paths, folder)["scaling fit"]
    assert run([*fit[: fit.index("--out")], "--out", str(paths["family"])]).code == 0
    return paths
