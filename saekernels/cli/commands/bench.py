"""`saekernels bench`: how fast the ops are here, against what one would use instead."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from saekernels.backends import registry
from saekernels.bench import GROUPS, OPS, Record, Settings, Shape, StoppedError, plan, run
from saekernels.bench.cpu.terminal import record_text
from saekernels.bench.measure.trainers import CLASSES
from saekernels.cli.commands import bench_gpu, bench_scorecard
from saekernels.cli.options.arguments import at_least, not_empty, seconds
from saekernels.cli.options.inputs import DTYPES
from saekernels.cli.options.output import show, show_written
from saekernels.errors import InputError
from saekernels.files.checked import check_writable, write_whole

# What kernels and torch both compute.
BENCH_DTYPES = tuple(name for name in DTYPES if name != "float64")
THREADS = "of every contender (default: torch's number)"


_CONTENDERS = (
    "Times ops in turns with torch, SAELens, sparsify and dictionary_learning where they are installed. A contender "
    "with a wrong answer is not timed."
)


def add_parser(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="time the ops against torch, SAELens and sparsify",
        description=f"Without DEVICE: a scorecard of what is here (the GPU, else the CPU), in some two minutes. "
        f"{_CONTENDERS}",
        examples=(("saekernels bench", "the scorecard of this machine"), ("saekernels bench --threads 2 --quick", "")),
    )
    devices = bench.add_subparsers(title="devices and records", dest="device", metavar="DEVICE")
    how = bench.group("scale")
    how.add_argument("--threads", metavar="N", type=at_least(1), help=THREADS)
    how.add_argument("--quick", action="store_true", help="tiny shapes, a matter of seconds; says nothing of speed")
    output = bench.group("output")
    where = "where the scorecard's files go"
    output.add_argument("--out", metavar="DIR", type=not_empty, default="saekernels-bench", help=where)
    bench.set_defaults(run=bench_scorecard.run)
    _add_cpu(devices)
    _add_train(devices)
    bench_gpu.add_parsers(devices)
    bench_scorecard.add_compare(devices)


def _add_cpu(devices: Any) -> None:
    parser = devices.add_parser(
        "cpu",
        help="the CPU kernels",
        description=_CONTENDERS,
        examples=(
            ("saekernels bench cpu --quick", "does it run"),
            ("saekernels bench cpu --ops sae_topk --shapes 1024,768,24576,32 --json record.json", ""),
        ),
    )
    what = parser.group("what is timed")
    known = ", ".join((*OPS, *GROUPS))
    what.add_argument("--ops", metavar="NAME,...", type=op_names, help=f"of {known} (default: all but train)")
    shapes = (
        "T,d,F,k tokens, width, latents, active ones; for the loss T,d,V (default: those of common SAEs); "
        "calls have their own: one token, a thousand calls, so that their ms are the µs of one"
    )
    what.add_argument("--shapes", metavar="T,d,F,k", type=shape, nargs="+", action="extend", help=shapes)
    names = f"of {', '.join(BENCH_DTYPES)} (default: each op's own)"
    what.add_argument("--dtypes", metavar="NAME,...", type=dtypes, help=names)
    _add_how(parser, what)


def _add_train(devices: Any) -> None:
    parser = devices.add_parser(
        "train",
        help="a training step of each class of SAE on the CPU",
        description="Times a whole step, of loss, gradients and Adam, by this library, on dense latents in torch, and "
        "by the trainers of SAELens, dictionary_learning and sparsify where they are installed. A step whose loss or "
        "gradients are not those of dense latents is not timed.",
        examples=(
            ("saekernels bench train --quick", "does it run"),
            ("saekernels bench train --classes batch_topk,jumprelu --threads 1 --cpu-time", "beside other work"),
        ),
    )
    what = parser.group("what is timed")
    classes = f"of {', '.join(CLASSES)} (default: all)"
    what.add_argument("--classes", metavar="NAME,...", dest="ops", type=class_names, help=classes)
    shapes = "T,d,F,k tokens, width, latents, active ones (default: 1024,768,24576,32)"
    what.add_argument("--shapes", metavar="T,d,F,k", type=shape, nargs="+", action="extend", help=shapes)
    # Adam takes as long for few tokens, by which a step's time is estimated.
    _add_how(parser, what, most_seconds=60.0)
    parser.set_defaults(run=run_train)


def _add_how(parser: Any, what: Any, most_seconds: float = 10.0) -> None:
    """What all that is timed on the CPU has in common."""
    what.add_argument("--quick", action="store_true", help="tiny shapes, a matter of seconds; says nothing of speed")
    how = parser.group("scale")
    how.add_argument("--threads", metavar="N", type=at_least(1), help=THREADS)
    how.add_argument("--rounds", metavar="N", type=at_least(1), default=20, help="at most; a slow contender gets 3")
    budget = "of timed calls per case; a contender that needs more for one call is skipped"
    how.add_argument("--budget", metavar="SECONDS", type=seconds, default=most_seconds, help=budget)
    cpu_time = "CPU seconds of all threads, which other work leaves alone, not those of a clock on the wall"
    how.add_argument("--cpu-time", action="store_true", help=cpu_time)
    output = parser.group("output")
    output.add_argument("--json", metavar="PATH", type=not_empty, help="write the record as JSON")
    output.add_argument("--csv", metavar="PATH", type=not_empty, help="write its rows as CSV")
    parser.set_defaults(run=run_bench)


def op_names(text: str) -> tuple[str, ...]:
    """Names of OPS, groups resolved, each once."""
    found: list[str] = []
    for name in text.split(","):
        if name not in OPS and name not in GROUPS:
            raise argparse.ArgumentTypeError(f"no op {name!r}; need some of {', '.join((*OPS, *GROUPS))}")
        found += GROUPS.get(name, (name,))
    return tuple(dict.fromkeys(found))


def class_names(text: str) -> tuple[str, ...]:
    """The names of a training step's ops, of some of CLASSES, each once."""
    for name in text.split(","):
        if name not in CLASSES:
            raise argparse.ArgumentTypeError(f"no class {name!r}; need some of {', '.join(CLASSES)}")
    return tuple(f"train_{name}" for name in dict.fromkeys(text.split(",")))


def shape(text: str) -> Shape:
    """ "1024,768,24576,32" or, for the loss, "2048,768,50304"."""
    wrong = argparse.ArgumentTypeError(f"need T,d,F,k or T,d,V, positive whole numbers, got {text!r}")
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise wrong from None
    if len(sizes) not in (3, 4) or min(sizes) < 1:
        raise wrong
    made = Shape(*sizes)
    if made.k > made.F:
        raise argparse.ArgumentTypeError(f"need k <= F, got {text!r}")
    return made


def dtypes(text: str) -> tuple[Any, ...]:
    """Some of BENCH_DTYPES."""
    names = dict.fromkeys(text.split(","))
    for name in names:
        if name not in BENCH_DTYPES:
            raise argparse.ArgumentTypeError(f"no dtype {name!r}; need some of {', '.join(BENCH_DTYPES)}")
    return tuple(DTYPES[name] for name in names)


def run_bench(arguments: argparse.Namespace) -> int:
    """Run, write the files, print the tables; of a run that is interrupted, those of what was measured."""
    _check_outputs(arguments)
    settings = _settings(arguments)
    if (wrong := registry.misset()) is not None:
        raise InputError(wrong)
    stopped = False
    try:
        record = run(settings, say=lambda line: print(line, file=sys.stderr, flush=True))
    except StoppedError as interrupt:
        record, stopped = interrupt.record, True
    _write(record, arguments)
    show(record_text(record))
    if stopped:
        kept = " and ".join(path for path in (arguments.json, arguments.csv) if path)
        raise KeyboardInterrupt(f"{kept} was written, of the cases until then" if kept else "nothing was written")
    reader = "saekernels bench compare A.json B.json reads two of these"
    show_written([(arguments.json, reader), (arguments.csv, "one row per contender and case")])
    return 0


def run_train(arguments: argparse.Namespace) -> int:
    """As `bench cpu` of the ops of training steps."""
    arguments.ops, arguments.dtypes = arguments.ops or GROUPS["train"], None
    return run_bench(arguments)


def _settings(arguments: argparse.Namespace) -> Settings:
    if arguments.quick and arguments.shapes:
        raise InputError("--quick and --shapes: give one of them")
    settings = Settings(
        ops=arguments.ops,
        shapes=None if arguments.shapes is None else tuple(arguments.shapes),
        dtypes=arguments.dtypes,
        threads=arguments.threads,
        rounds=arguments.rounds,
        budget=arguments.budget,
        quick=arguments.quick,
        cpu_time=arguments.cpu_time,
    )
    try:
        plan(settings)
    except ValueError as error:
        raise InputError(f"--shapes: {error}") from error
    return settings


def _check_outputs(arguments: argparse.Namespace) -> None:
    if arguments.json and arguments.csv and os.path.realpath(arguments.json) == os.path.realpath(arguments.csv):
        raise InputError(f"--json and --csv: both are {arguments.json}")
    for option, path in (("--json", arguments.json), ("--csv", arguments.csv)):
        if path:
            check_writable(path, option)


def _write(record: Record, arguments: argparse.Namespace) -> None:
    if arguments.json:
        write_whole(arguments.json, record.to_json())
    if arguments.csv:
        write_whole(arguments.csv, record.to_csv())
