"""`saekernels`: parse, run one command, turn failures into a message and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import saekernels
from saekernels.eval.errors import InputError

from . import bench as bench_command
from . import eval as eval_command
from . import info as info_command
from .arguments import Parser

INTERRUPTED = 130


def build_parser() -> Parser:
    parser = Parser(prog="saekernels", description="Kernels for sparse autoencoders, and what splicing them in costs.")
    parser.add_argument("--version", action="version", version=f"saekernels {saekernels.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in (eval_command, bench_command, info_command):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 2 for bad input, after one line on stderr; 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a Greek letter gets a question mark, not a failure after the work is done.
            stream.reconfigure(errors="replace")
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        return int(arguments.run(arguments))
    except InputError as error:
        print(f"saekernels {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"saekernels {arguments.command}: interrupted, nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone; the interpreter would fail again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
