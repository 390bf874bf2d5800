"""`saekernels convert`: a checkpoint of any format that is read, written in SAELens' format."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

from saekernels.cli.options.arguments import at_least, not_empty, positive
from saekernels.cli.options.inputs import DTYPES
from saekernels.cli.options.output import show
from saekernels.errors import InputError, first_line, missing_extra
from saekernels.formats import load, save


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="rewrite an SAE checkpoint in SAELens' format",
        description="Read an SAE or transcoder (SAELens, sparsify, dictionary_learning, Gemma Scope, Llama Scope, "
        "Llamascopium, OpenAI, Goodfire, Qwen Scope, circuit-tracer) and write it as SAELens does.",
        examples=(
            ("saekernels convert trained/sae converted", ""),
            ("saekernels convert google/gemma-scope-2b-pt-res/layer_6/width_16k/average_l0_70 gemma_6", ""),
        ),
    )
    files = parser.group("files")
    files.add_argument("source", metavar="PATH|HUB_ID", type=not_empty, help="a folder, a file, or owner/name/folder")
    files.add_argument("out", metavar="DIR", type=not_empty, help="the folder to write")
    files.add_argument("--revision", metavar="NAME", type=not_empty, help="of a repository on the hub (default: main)")
    told = parser.group("what the files do not say")
    told.add_argument("--k", metavar="N", type=at_least(1), help="active latents (default: as the files say)")
    scale = "factor on inputs that the SAE was trained with (default: as the files say)"
    told.add_argument("--input-scale", metavar="S", type=positive, help=scale)
    weights = "of the weights (default: the checkpoint's)"
    parser.group("precision").add_argument("--dtype", choices=list(DTYPES), help=weights)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read, write, and say what it is."""
    out = Path(arguments.out)
    if os.path.lexists(out) and not (os.path.isdir(out) and not any(out.iterdir())):
        raise InputError(f"out: {out} exists; give a new folder")
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            sae = load(arguments.source, dtype=dtype, input_scale=arguments.input_scale, k=arguments.k,
                       revision=arguments.revision)  # fmt: skip
        save(sae, out, metadata={"converted_from": str(arguments.source)})
    except ImportError as error:
        raise missing_extra("safetensors", "writing checkpoints") from error
    except (OSError, ValueError) as error:
        raise InputError(first_line(error)) from error
    for one in told:
        show(f"Note: {one.message}\n")
    show(f"{out}: {sae}\n")
    return 0
