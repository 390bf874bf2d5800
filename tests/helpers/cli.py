"""The command line in the tests' own process: arguments for the tiny model's files, and what a failure looks like."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import tiny_lm
from saekernels.cli import main


def files(folder: Path) -> dict[str, Path]:
    """Inputs in that folder: the model's directory, SAE directories by site, and data."""
    paths = tiny_lm.save(folder)
    paths["data"] = folder / "eval.jsonl.gz"
    records = [{"text": d.text, "domain": d.domain, "source": d.source} for d in tiny_lm.documents()]
    paths["data"].write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    return paths


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
