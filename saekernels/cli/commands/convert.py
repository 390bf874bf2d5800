"""`saekernels convert`: a checkpoint of any format that is read, written in SAELens' format."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

from saekernels.cli.options.arguments import not_empty
from saekernels.cli.options.checkpoint import add_options, given, in_options
from saekernels.cli.options.inputs import DTYPES
from saekernels.cli.options.output import show
from saekernels.errors import InputError, first_line, missing_extra
from saekernels.formats import load, save


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="rewrite an SAE checkpoint in SAELens' format",
        description="Read an SAE or transcoder (SAELens, sparsify, dictionary_learning, Gemma Scope, Llama Scope, "
        "Llamascopium, OpenAI, Goodfire, Qwen Scope, circuit-tracer) and write it as SAELens (6 and later) does. What "
        "SAELens has no place for is folded into the weights where that is exact, or refused by name; the output says "
        "what was folded and what could not be kept.",
        examples=(
            ("saekernels convert trained/sae converted", ""),
            ("saekernels convert mine.pt converted --format 'state dict' --config said.json", ""),
            ("saekernels convert google/gemma-scope-2b-pt-res/layer_6/width_16k/average_l0_70 gemma_6", ""),
        ),
    )
    files = parser.group("files")
    files.add_argument("source", metavar="PATH|HUB_ID", type=not_empty, help="a folder, a file, or owner/name/folder")
    files.add_argument("out", metavar="DIR", type=not_empty, help="the folder to write")
    add_options(parser)
    weights = "of the weights (default: the checkpoint's)"
    parser.group("precision").add_argument("--dtype", choices=list(DTYPES), help=weights)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read, write, and say what it is, what was folded and what was lost."""
    out = Path(arguments.out)
    if os.path.lexists(out) and not (os.path.isdir(out) and not any(out.iterdir())):
        raise InputError(f"out: {out} exists; give a new folder")
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    beside = given(arguments)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            sae = load(arguments.source, dtype=dtype, **beside)
        changed = save(sae, out, metadata={"converted_from": str(arguments.source)})
    except ImportError as error:
        raise missing_extra("safetensors", "writing checkpoints") from error
    except (OSError, ValueError) as error:
        raise InputError(in_options(first_line(error))) from error
    for one in told:
        show(f"Note: {in_options(str(one.message))}\n")
    show("\n".join([f"{out}: {sae}", *(f"  {one}" for one in changed or ("written as it is",))]) + "\n")
    return 0
