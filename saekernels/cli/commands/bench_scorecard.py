"""`saekernels bench` without a device: the scorecard; `saekernels bench compare A B`: what became slower."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from saekernels.bench import Record
from saekernels.bench import run as run_cases
from saekernels.bench.cpu import compare, scorecard
from saekernels.bench.gpu.cases import Settings as GpuSettings
from saekernels.cli.commands import bench_gpu
from saekernels.cli.options.arguments import not_empty
from saekernels.cli.options.output import show
from saekernels.display.tables import text_table
from saekernels.errors import InputError
from saekernels.files.checked import make_folder, write_whole

SLOWER = 1


def add_compare(devices: Any) -> None:
    """The command `compare`."""
    parser = devices.add_parser(
        "compare",
        help="two records: what became slower, beyond noise",
        description="Compare our times in two records of one machine. What torch and the peers drifted by is taken "
        "out. Exit code 1 if anything became slower beyond noise.",
        examples=(("saekernels bench compare before.json after.json", ""),),
    )
    records = parser.group("records")
    records.add_argument("a", metavar="A.json", type=not_empty, help="the earlier one")
    records.add_argument("b", metavar="B.json", type=not_empty, help="the later one")
    parser.set_defaults(run=run_compare)


def run(arguments: argparse.Namespace) -> int:
    """The scorecard of the GPU if there is one, else of the CPU; prints it, writes its files."""
    folder = make_folder(arguments.out, "--out")
    if torch.cuda.is_available():
        return bench_gpu.scorecard(GpuSettings(quick=True), str(folder / "gpu.json"))
    settings = scorecard.settings(arguments.threads, arguments.quick)
    record = run_cases(settings, say=_say, todo=scorecard.cases(settings))
    written = _write(record, folder)
    show(scorecard.as_text(record) + "\n".join(f"wrote {path}" for path in written) + "\n")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(record: Record, folder: Path) -> list[Path]:
    """The record as JSON and CSV, and the plot where matplotlib is; a name of its own for every run."""
    stem = record.date.replace(":", "").replace("+0000", "")
    texts = {folder / f"{stem}.json": record.to_json(), folder / f"{stem}.csv": record.to_csv()}
    if importlib.util.find_spec("matplotlib") is not None:
        texts[folder / f"{stem}.svg"] = scorecard.plot(record)
    for path, text in texts.items():
        write_whole(str(path), text)
    return list(texts)


def run_compare(arguments: argparse.Namespace) -> int:
    """Print the changes; exit code 1 if anything is slower."""
    try:
        records = [compare.read(path) for path in (arguments.a, arguments.b)]
        changes = compare.compare(*records)
    except ValueError as error:
        raise InputError(str(error)) from error
    rows = [
        [
            " ".join(change.case),
            f"{change.before_ms:.2f}",
            f"{change.after_ms:.2f}",
            f"{change.relative:.2f}x",
            f"{100 * change.noise:.0f}%",
            change.verdict,
        ]
        for change in changes
    ]
    notes = [f"The machine's own drift, of torch and the peers: {changes[0].drift:.2f}x, taken out."]
    cpus = [record["machine"].get("model") or record["machine"].get("name") for record in records]
    if cpus[0] != cpus[1]:
        notes.append(f"The records are of different machines: {cpus[0]} and {cpus[1]}.")
    headings = ("case", "A ms", "B ms", "B over A", "noise", "verdict")
    show(text_table(headings, rows, after="\n".join(notes)))
    return SLOWER if any(change.verdict == "slower" for change in changes) else 0
