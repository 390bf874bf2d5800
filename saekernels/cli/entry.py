"""`saekernels`: parse, run one command, turn failures into a message and an exit code."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from saekernels._version import __version__
from saekernels.cli.commands import bench as bench_command
from saekernels.cli.commands import breadth as breadth_command
from saekernels.cli.commands import compare as compare_command
from saekernels.cli.commands import convert as convert_command
from saekernels.cli.commands import eval as eval_command
from saekernels.cli.commands import info as info_command
from saekernels.cli.commands import maps as maps_command
from saekernels.cli.commands import monitor as monitor_command
from saekernels.cli.commands import plan as plan_command
from saekernels.cli.commands import probe as probe_command
from saekernels.cli.commands import scaling as scaling_command
from saekernels.cli.commands.controls import command as controls_command
from saekernels.cli.commands.generation import command as generation_command
from saekernels.cli.commands.over import command as over_command
from saekernels.cli.commands.reuse import command as reuse_command
from saekernels.cli.options.arguments import Parser, as_typed
from saekernels.cli.options.output import OutputError, flushed
from saekernels.cli.options.processes import LOST, one_process_only, stopped
from saekernels.errors import InputError, first_line
from saekernels.eval.store.ranks import RankLostError, ToldError

BAD_INPUT = 2
UNSHOWN = 1
INTERRUPTED = 130
BROKEN_PIPE = 141
OUT_OF_MEMORY = 4
FAMILIES = {
    "evaluate": (
        eval_command,
        controls_command,
        breadth_command,
        maps_command,
        probe_command,
        reuse_command,
        over_command,
        monitor_command,
        generation_command,
        compare_command,
        scaling_command,
    ),
    "files": (convert_command,),
    "this machine": (bench_command, info_command, plan_command),
}  # fmt: skip
# Commands that several processes can do together.
SHARED = ("eval", "info")


def build_parser() -> Parser:
    parser = Parser(
        prog="saekernels",
        usage="saekernels [-h] [--version] COMMAND ...",
        description="Kernels for sparse autoencoders, and what splicing them in costs. "
        "`saekernels COMMAND --help` tells more of each.",
        examples=(
            ("saekernels eval", "what SAEs at every layer of the bundled example cost"),
            ("saekernels info", "which backend serves which op here"),
        ),
    )
    parser.add_argument("--version", action="version", version=f"saekernels {__version__}", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", prog="saekernels", help=argparse.SUPPRESS)
    for title, family in FAMILIES.items():
        parser.add_family(title, commands, [command.add_parser for command in family])
    parser.tell_options()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; after one line on stderr 2 for bad input, 1 if stdout cannot be written, 3 if another process of
    the same run is lost, 4 if memory does not suffice, 130 after Ctrl-C; 141 without a word when the reader of stdout
    has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a Greek letter gets a question mark, not a failure after the work is done.
            stream.reconfigure(errors="replace")
    name = "saekernels"
    arguments = None
    try:
        with flushed():
            parser = build_parser()
            arguments = parser.parse_args(argv)
            if arguments.command is None:
                parser.print_help()
                return 0
            name = f"saekernels {arguments.command}"
            arguments.argv = list(sys.argv[1:] if argv is None else argv)
            if arguments.command not in SHARED:
                one_process_only(name)
            with _warnings_in_a_line(name):
                return int(arguments.run(arguments))
    except ToldError:
        return BAD_INPUT
    except RankLostError as error:
        return _fail(f"{name}: {stopped(str(error), getattr(arguments, 'checkpoint', None))}", LOST)
    except InputError as error:
        told = str(error) if arguments is None else as_typed(str(error), arguments.options, arguments.argv)
        return _fail(f"{name}: error: {told}", BAD_INPUT)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fail(f"{name}: error: {_out_of_memory(error, getattr(arguments, 'checkpoint', None))}", OUT_OF_MEMORY)
    except OutputError as error:
        return _fail(f"{name}: error: cannot write to stdout: {error}", UNSHOWN)
    except KeyboardInterrupt as interrupt:
        folder = getattr(arguments, "checkpoint", None)
        there = folder is not None and os.path.isdir(folder)
        kept = f"what was done is in {folder}: the same command goes on from there" if there else "nothing was written"
        return _fail(f"{name}: interrupted, {str(interrupt) or kept}", INTERRUPTED)
    except BrokenPipeError:
        return BROKEN_PIPE


@contextmanager
def _warnings_in_a_line(name: str) -> Iterator[None]:
    """Our own warnings as a command says things: each once, without the line of code that it comes from."""
    usual, said = warnings.formatwarning, set[str]()
    package = str(Path(__file__).parent.parent)

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, UserWarning) and filename.startswith(package):
            told = f"{name}: warning: {' '.join(str(message).splitlines())}\n"
            new = told not in said
            said.add(told)
            return told if new else ""
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for GPUs alone; the CPU's allocator and the C++ library say it in words."""
    import torch

    words = ("can't allocate memory", "not enough memory", "bad_alloc")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _out_of_memory(error: BaseException, checkpoint: str | None) -> str:
    kept = f"; what was done is in {checkpoint}, and the same command goes on from there" if checkpoint else ""
    return f"out of memory; a smaller --batch-size or --context needs less{kept} ({first_line(error)})"


def _fail(message: str, code: int) -> int:
    # A file name may hold line breaks; an error is one line.
    print(" ".join(message.splitlines()), file=sys.stderr)
    return code
