"""The scorecard's record: where, with what, every row, every target; and where it is written."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from saekernels.bench.cpu.record import Row
from saekernels.bench.gpu.cases import Case
from saekernels.bench.measure import machine

SCHEMA = 1
PACKAGE = Path(__file__).resolve().parents[2]
# What runs on the GPU; csrc is there in a checkout only.
SOURCES = (PACKAGE / "backends" / "triton", PACKAGE.parent / "csrc" / "cuda", PACKAGE.parent / "csrc" / "common")


@dataclass
class TargetRow:
    """A target, the ratio reached (None where unknown) and whether that is enough."""

    case: str
    target: str
    limit: float
    ratio: float | None
    met: bool | None


@dataclass
class Record:
    """A run on one GPU.

    Attributes:
        kernel_hash: sha256 over the kernels' sources: a record with another hash is of other kernels.
        ceilings: measured on this card, in GB/s and TFLOP/s.
        gate: the checks' names and None, or what was wrong.
        predicted_ms: by "case: contender", from the cost model on the measured ceilings.
    """

    date: str
    commit: str | None
    dirty: bool | None
    kernel_hash: str
    hardware: dict[str, Any]
    versions: dict[str, str | None]
    settings: dict[str, Any]
    ceilings: dict[str, float] = field(default_factory=dict)
    gate: dict[str, str | None] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    targets: list[TargetRow] = field(default_factory=list)
    predicted_ms: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, "kind": "gpu", **asdict(self)}, indent=1, allow_nan=False) + "\n"

    def has(self, case: Case) -> bool:
        """Whether there are rows of a case."""
        of = (case.op, str(case.dtype).removeprefix("torch."), case.shape.sizes())
        return any((row.op, row.dtype, row.shape) == of for row in self.rows)


class OtherRecordError(ValueError):
    """A record that a run cannot go on with; the message says why."""


def read(path: str) -> Record:
    """The record in a file that `to_json` wrote. Raises OtherRecordError for any other."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if (content.pop("schema"), content.pop("kind")) != (SCHEMA, "gpu"):
            raise ValueError("its schema or kind is another")
        rows, targets = content.pop("rows"), content.pop("targets")
        return Record(**content, rows=[Row(**row) for row in rows], targets=[TargetRow(**row) for row in targets])
    except (OSError, RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OtherRecordError(f"{path} is not a readable record of saekernels bench gpu: {error}") from error


def require_same(before: Record, now: Record) -> None:
    """Raise OtherRecordError where a run that starts now could not go on with a record: it is of something else."""
    for name in ("kernel_hash", "versions", "settings"):
        was, needed = getattr(before, name), getattr(now, name)
        if was != needed:
            raise OtherRecordError(f"the record has {name} {was}, need {needed}")
    if before.hardware.get("gpu") != now.hardware["gpu"]:
        raise OtherRecordError(f"the record is of {before.hardware.get('gpu')}, need {now.hardware['gpu']}")


def kernel_hash() -> str:
    """sha256 over names and contents of the kernels' sources."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".cu", ".h", ".cpp", ".cmake"):
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def hardware(device: torch.device) -> dict[str, Any]:
    """The card, its driver and clocks."""
    found = torch.cuda.get_device_properties(device)
    return {
        "gpu": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": found.L2_cache_size,
        **_from_driver(device),
        "cpu": machine.cpu()["model"],
    }


def _from_driver(device: torch.device) -> dict[str, str]:
    """Driver and clocks as nvidia-smi tells them; nothing where it does not."""
    names = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
    query = ["nvidia-smi", f"--id={device.index or 0}", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = answer.stdout.strip().split(", ") if answer.returncode == 0 else []
    return dict(zip(names, values, strict=False))


def versions() -> dict[str, str | None]:
    """Of what computes."""
    return {**machine.versions(("triton",)), "cuda": torch.version.cuda, "platform": platform.platform()}


def slug(gpu: str) -> str:
    """ "NVIDIA H200" to "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def default_path(gpu: str, date: str, commit: str | None) -> Path:
    """benchmarks/results/<gpu>/<date>-<commit>.json in a checkout, else in the current directory; a new name always."""
    root = PACKAGE.parent / "benchmarks" / "results" / slug(gpu) if commit else Path.cwd()
    stem = f"{date[:10]}-{commit[:7]}" if commit else f"saekernels-{slug(gpu)}-{date[:10]}"
    path, number = root / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = root / f"{stem}-{number}.json"
    return path
