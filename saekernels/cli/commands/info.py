"""`saekernels info`: versions, devices, which backend serves which op and why another does not; or a checkpoint."""

from __future__ import annotations

import argparse
import json
import platform
import textwrap
from importlib import metadata
from typing import Any

import torch

from saekernels._version import __version__
from saekernels.adapters import StepCounts
from saekernels.backends import registry
from saekernels.cli.commands import stats
from saekernels.cli.options import checkpoint
from saekernels.cli.options.arguments import not_empty
from saekernels.cli.options.output import show
from saekernels.display.tables import WIDTH
from saekernels.errors import InputError, first_line, missing_extra
from saekernels.formats.describe import describe
from saekernels.formats.layers.describe import describe_cross_layer

PACKAGES = ("numpy", "triton", "transformers", "tokenizers", "datasets", "safetensors", "rich", "matplotlib")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, devices and backends; or what an SAE's checkpoint is",
        description="Versions, devices, and which backend serves which op for each dtype, and why another does not. "
        "With a PATH instead, what the SAE or transcoder there is, without loading its weights: format, files, sizes, "
        "activation, biases, normalisation, memory, what the files say of the model and the text, the site that it "
        "would be placed at, and every field that was ignored. Of a cross-layer transcoder, or a set of transcoders, "
        "also layers, parameters, and what of encoders and decoders is held in memory or stays in the files.",
        examples=(
            ("saekernels info", ""),
            ("saekernels info --stats --json", ""),
            ("saekernels info trained/sae", "what is in a checkpoint"),
        ),
    )
    what = "a checkpoint: a folder, a file, or owner/name/folder, which is downloaded (default: this installation)"
    parser.group("files").add_argument("path", metavar="PATH|HUB_ID", nargs="?", type=not_empty, help=what)
    checkpoint.add_options(parser)
    output = parser.group("output")
    output.add_argument("--json", action="store_true", help="print JSON")
    ways = (
        "encode rows of several kinds, on a GPU too; count those screened, scored whole, or fallen back. Take a "
        "training step of each class of the installed tools; count those taken over and left to the tool, by the reason"
    )
    output.add_argument("--stats", action="store_true", help=ways)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.path is not None:
        if arguments.stats:
            raise InputError("--stats: it is about this installation, not about a checkpoint; give one of the two")
        facts = _of_checkpoint(arguments)
        lines_of = checkpoint.layer_lines if "layers" in facts else checkpoint.lines
        show((json.dumps(facts, indent=2, default=str) if arguments.json else "\n".join(lines_of(facts))) + "\n")
        return 0
    if lone := checkpoint.asked(arguments):
        raise InputError(f"{lone[0]}: it is about a checkpoint; give its PATH as well")
    if (wrong := registry.misset()) is not None:
        raise InputError(wrong)
    facts = gather()
    if arguments.stats:
        facts["stats"], facts["gpu_stats"] = stats.counts(), stats.gpu_counts()
        facts["training_steps"] = {name: found._asdict() for name, found in stats.step_counts().items()}
    show((json.dumps(facts, indent=2) if arguments.json else "\n".join(lines(facts))) + "\n")
    return 0


def _of_checkpoint(arguments: argparse.Namespace) -> dict[str, Any]:
    beside = checkpoint.given(arguments)
    try:
        layered = describe_cross_layer(arguments.path, k=beside["k"], revision=beside["revision"])
        if layered is None:
            return describe(arguments.path, **beside)
        if refused := [name for name in ("format", "config", "input_scale") if beside[name] is not None]:
            raise ValueError(f"{refused[0]}: got it for {arguments.path}, a {layered['class']}, whose files say it all")
        return layered
    except ImportError as error:
        raise missing_extra("safetensors", "reading checkpoints") from error
    except (OSError, ValueError) as error:
        raise InputError(checkpoint.in_options(first_line(error))) from error


def gather() -> dict[str, Any]:
    """All of it, JSON-ready."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "versions": _versions(),
        "platform": platform.platform(),
        "devices": _devices(),
        "threads": torch.get_num_threads(),
        "torch_simd": torch.backends.cpu.get_cpu_capability(),
        "backends": {name: _describe(name) for name in registry.PREFERENCE},
        "ops": [row._asdict() for kind in kinds for row in registry.explain(kind)],
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "saekernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _devices() -> list[str]:
    devices = [f"cpu ({platform.machine()})"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        devices.append(f"cuda:{index} {properties.name} (sm_{properties.major}{properties.minor}, {memory:.0f} GiB)")
    return devices


def _describe(name: str) -> dict[str, str]:
    """What the backend says of itself; at least whether it is usable."""
    module = registry.load(name)
    describe = getattr(module, "describe", None)
    if describe is not None:
        return dict(describe())
    return {"status": module.available() or "usable"}


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts as text, without rich: the base install has to be able to print them."""
    text = [f"{name:14}{version or 'not installed'}" for name, version in facts["versions"].items()]
    text += ["", f"{'platform':14}{facts['platform']}"]
    text += [f"{'device':14}{device}" for device in facts["devices"]]
    text += [f"{'threads':14}{facts['threads']}", f"{'torch SIMD':14}{facts['torch_simd']}"]
    for name, described in facts["backends"].items():
        text += ["", f"backend {name}"]
        text += [f"  {key + ':':19}{value}" for key, value in described.items()]
    if "stats" in facts:
        text += stats.lines(facts["stats"])
        text += stats.lines(facts["gpu_stats"], ", GPU") if facts["gpu_stats"] else []
        text += stats.step_lines({name: StepCounts(**found) for name, found in facts["training_steps"].items()})
    text += ["", f"{'op':24}{'device':8}{'dtype':22}backend", *_op_lines(facts["ops"])]
    return text


def _op_lines(rows: list[dict[str, Any]]) -> list[str]:
    """One line per op, device and backend, its dtypes together, and below it the reasons of the others."""
    groups: dict[tuple[str, str, str, tuple[tuple[str, str], ...]], list[str]] = {}
    for row in rows:
        reasons = tuple(sorted(row["others"].items()))
        groups.setdefault((row["op"], row["device"], row["backend"], reasons), []).append(row["dtype"])
    text = []
    for (op, device, backend, reasons), dtypes in groups.items():
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons if not reason.endswith("is preferred"))
        short = ", ".join(dtype.replace("float", "f") for dtype in dtypes)
        line = f"{op:24}{device:8}{short:22}{backend}" + (f"  ({why})" if why else "")
        text += textwrap.wrap(line, WIDTH, subsequent_indent=" " * 32, break_on_hyphens=False)
    return text
