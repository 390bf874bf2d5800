"""`saekernels maps`: predict one layer's latents from another's, splice the prediction, and report what it costs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from saekernels.eval.errors import InputError, missing_extra
from saekernels.eval.files import check_writable, write_whole
from saekernels.eval.maps import measure_maps
from saekernels.eval.plan import site_of
from saekernels.eval.table import percent, with_interval
from saekernels.eval.windows import Tokens, default_context

from .arguments import at_least, not_empty
from .output import show
from .progress import progress_bar
from .source import BOS, add_how, add_source, fill_from_example, load_source


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "maps",
        help="do the features of two layers compose: predicted downstream latents, spliced in",
        description="Fit sparse linear maps from the latents of one SAE to those of a later one on a domain and on "
        "everything, splice the predicted latents in, and report the loss inside that domain and outside of it.",
    )
    add_source(parser)
    how = add_how(parser)
    how.add_argument(
        "--upstream", metavar="SITE", type=not_empty, help="where latents are read (the last but one SAE's)"
    )
    how.add_argument("--downstream", metavar="SITE", type=not_empty, help="where they are predicted (the last SAE's)")
    how.add_argument("--domain", metavar="NAME", type=not_empty, help="the domain that is inside (the largest)")
    counts = "upstream latents per downstream latent; 1 is the degenerate control"
    how.add_argument("--entries", metavar="N", type=at_least(1), nargs="+", default=[1, 32], help=counts)
    how.add_argument("--bootstrap", metavar="N", type=at_least(0), default=1000, help="replicates; 0: no intervals")
    parser.add_argument("--json", metavar="PATH", type=not_empty, help="write the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write."""
    fill_from_example(arguments)
    if arguments.json:
        check_writable(arguments.json)
    source = load_source(arguments)
    entries = list(source.saes)
    ends = [arguments.upstream or entries[max(0, len(entries) - 2)], arguments.downstream or entries[-1]]
    for option, entry in zip(("--upstream", "--downstream"), ends, strict=True):
        if entry not in source.saes:
            raise InputError(f"{option}: no SAE was given for {entry!r}; there are {', '.join(entries)}")
    context = arguments.context or default_context(source.model, source.tokenizer)
    tokens = Tokens(source.tokenizer, context, bos=BOS[arguments.bos])
    upstream, downstream = ((site_of(entry), source.saes[entry]) for entry in ends)
    with progress_bar() as progress:
        found = measure_maps(
            source.model,
            tokens,
            upstream,
            downstream,
            list(source.documents),
            domain=arguments.domain,
            entries=arguments.entries,
            wanted=arguments.tokens,
            batch_size=arguments.batch_size,
            bootstrap=arguments.bootstrap,
            seed=arguments.seed,
            progress=progress,
        )
    result = {"model": arguments.model_name, **found}
    show(_text(result))
    if arguments.json:
        write_whole(arguments.json, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return 0


def _text(result: dict[str, Any]) -> str:
    try:
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError as error:
        raise missing_extra("rich", "the table") from error
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    inside = f"ΔCE in {result['domain']}"
    for heading in ("map", "fitted on", "latents explained", inside, "ΔCE elsewhere"):
        table.add_column(escape(heading), justify="right" if len(table.columns) > 1 else "left", no_wrap=True)
    for row in result["rows"]:
        cells = [
            row["method"],
            row["fitted_on"],
            percent(row["explained"]),
            with_interval(row["inside"], row["inside_ci95"]),
            with_interval(row["outside"], row["outside_ci95"]),
        ]
        table.add_row(*map(escape, cells))
    with console.capture() as capture:
        head = f"Latents at {result['downstream']}, predicted from those at {result['upstream']} and spliced in"
        console.print(escape(head), style="bold")
        console.print(table)
    return capture.get()
