"""`saekernels controls`: what is in the error of SAEs, what seeds share, and how many bits the codes take."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from typing import Any

from saekernels import example
from saekernels.cli.commands.controls.text import as_text
from saekernels.cli.options.arguments import Parser, names_of, not_empty, positive
from saekernels.cli.options.leave import add_leave
from saekernels.cli.options.output import show_written, shown, write_json
from saekernels.cli.options.report_files import check_outputs
from saekernels.cli.options.source import BOS, add_bootstrap, add_source, fill_from_example, load_source
from saekernels.display.progress import progress_bar
from saekernels.errors import InputError
from saekernels.eval import Document, load_documents
from saekernels.eval.studies.controls.measure import measure_controls
from saekernels.eval.studies.controls.options import PARTS, Options
from saekernels.eval.studies.family import read_family
from saekernels.eval.text.windows import Tokens, context_of
from saekernels.splice.leave import Leave


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "controls",
        help="what is in an SAE's error, what seeds share, how many bits the codes take",
        usage="saekernels controls [--model DIR --sae SITE=PATH ... --data FILE ...] [option ...]",
        description="Measure controls of SAEs that exist, each spliced in alone: the part of its error that a linear "
        "map of the input predicts, and the loss with that part or the rest added back; what SAEs of one site share; "
        "and the loss beside the bits that the codes take, PCA of the same rank and smaller models. Half of the "
        "documents of each domain are fitted on, the others are measured. Without --model, --sae and --data: the "
        "bundled example.",
        examples=(
            ("saekernels controls --tokens 10_000 --json c.json", "the bundled example"),
            ("saekernels controls --model gpt2 --data texts/ --sae transformer.h.6=sae --leave-first 1", ""),
            ("saekernels controls --parts seeds --sae 'model.layers.3#a=seed0' 'model.layers.3#b=seed1'", ""),
        ),
    )
    add_source(parser)
    add_leave(parser)
    _add_controls(parser)
    add_bootstrap(parser)
    parser.group("output").add_argument("--json", metavar="PATH", type=not_empty, help="write the result as JSON")
    parser.set_defaults(run=run)


def _add_controls(parser: Parser) -> None:
    group = parser.group("controls")
    parts = "what to measure, comma-separated"
    group.add_argument("--parts", metavar="PARTS", type=names_of(PARTS, at_least_one=True), default=PARTS, help=parts)
    off = "seeds: further text, of another distribution, to compare when latents are active (default: none)"
    group.add_argument("--off-data", metavar="FILE|DIR|DATASET", type=not_empty, nargs="+", action="extend", help=off)
    rise = "bits: the share of the squared error by which quantised values may raise it"
    group.add_argument("--rise", metavar="SHARE", type=positive, default=0.01, help=rise)
    family = "bits: a table of `saekernels scaling fit`, smaller models to set losses beside "
    family += "(default: the bundled example's, with nothing else given)"
    group.add_argument("--family", metavar="TABLE", type=not_empty, help=family)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write the file."""
    all_example = fill_from_example(arguments)
    check_outputs(arguments)
    table = arguments.family or (str(example.FAMILY) if all_example and example.FAMILY.is_file() else None)
    family = read_family(table) if table and "bits" in arguments.parts else None
    off = _off_data(arguments) if arguments.off_data else None
    source = load_source(arguments)
    context = context_of(source.model, source.tokenizer, arguments.context)
    if family is not None and arguments.family is None and family.context != context:
        family = None
    options = Options(
        parts=arguments.parts,
        rule=Leave(arguments.leave_first, arguments.leave_norm),
        rise=arguments.rise,
        wanted=arguments.tokens,
        batch_size=arguments.batch_size,
        bootstrap=arguments.bootstrap,
        seed=arguments.seed,
    )
    tokens = Tokens(source.tokenizer, context, bos=BOS[arguments.bos])
    with progress_bar() as progress:
        found = measure_controls(
            source.model, tokens, source.saes, source.documents, options, off=off, family=family, progress=progress
        )
    found["run"]["command"] = shlex.join(["saekernels", *arguments.argv])
    result = {"model": arguments.model_name, "context": context, **source.facts, **found}
    with shown(source.told() + as_text(result)):
        write_json(arguments.json, result)
    show_written([(arguments.json, "the figures")])
    return 0


def _off_data(arguments: argparse.Namespace) -> Iterable[Document]:
    """The text of another distribution."""
    fields = {"text_field": arguments.text_field, "domain_field": arguments.domain_field, "seed": arguments.seed}
    try:
        return load_documents(arguments.off_data, **fields)
    except InputError as error:
        raise InputError(f"--off-data: {str(error).removeprefix('data: ')}") from error
