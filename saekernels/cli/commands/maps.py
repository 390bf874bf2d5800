"""`saekernels maps`: predict one layer's latents from another's, splice the prediction, and report what it costs."""

from __future__ import annotations

import argparse
from typing import Any

from saekernels.cli.options.arguments import at_least, not_empty
from saekernels.cli.options.leave import add_leave, leave_keywords, left_line
from saekernels.cli.options.output import show_written, shown, write_json
from saekernels.cli.options.report_files import check_outputs
from saekernels.cli.options.source import BOS, add_bootstrap, add_source, fill_from_example, load_source
from saekernels.display.numbers import percent, with_interval
from saekernels.display.progress import progress_bar
from saekernels.display.tables import text_table
from saekernels.errors import InputError
from saekernels.eval.passes.plan import site_of
from saekernels.eval.report.reading import headed
from saekernels.eval.studies.maps import measure_maps
from saekernels.eval.text.windows import Tokens, context_of

_LEGEND = "ΔCE: cross-entropy of the spliced model minus that of the clean one, nats per token; [95 %]: its interval."


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "maps",
        help="do the features of two layers compose: predicted downstream latents, spliced in",
        usage="saekernels maps [--model DIR --sae SITE=PATH ... --data FILE ...] [option ...]",
        description="Fit sparse linear maps from the latents of one SAE to those of a later one on a domain and on "
        "everything, splice the predicted latents in, and report the loss inside that domain and outside of it. "
        "Without --model, --sae and --data: the bundled example.",
        examples=(
            ("saekernels maps", "the bundled example's last two layers"),
            ("saekernels maps --upstream model.layers.0 --downstream model.layers.3 --entries 1 8 64", ""),
        ),
    )
    add_source(parser)
    add_leave(parser)
    maps = parser.group("maps")
    upstream = "where latents are read (default: the last but one SAE's site)"
    maps.add_argument("--upstream", metavar="SITE", type=not_empty, help=upstream)
    downstream = "where they are predicted (default: the last SAE's site)"
    maps.add_argument("--downstream", metavar="SITE", type=not_empty, help=downstream)
    domain = "the domain that is inside (default: the largest)"
    maps.add_argument("--domain", metavar="NAME", type=not_empty, help=domain)
    counts = "upstream latents per downstream latent; 1 is the degenerate control"
    maps.add_argument("--entries", metavar="N", type=at_least(1), nargs="+", default=[1, 32], help=counts)
    add_bootstrap(parser)
    parser.group("output").add_argument("--json", metavar="PATH", type=not_empty, help="write the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write."""
    fill_from_example(arguments)
    check_outputs(arguments)
    source = load_source(arguments, domains=filter(None, [arguments.domain]))
    entries = list(source.saes)
    ends = [arguments.upstream or entries[max(0, len(entries) - 2)], arguments.downstream or entries[-1]]
    for option, entry in zip(("--upstream", "--downstream"), ends, strict=True):
        if entry not in source.saes:
            raise InputError(f"{option}: no SAE was given for {entry!r}; there are {', '.join(entries)}")
    context = context_of(source.model, source.tokenizer, arguments.context)
    tokens = Tokens(source.tokenizer, context, bos=BOS[arguments.bos])
    upstream, downstream = ((site_of(entry), source.saes[entry]) for entry in ends)
    with progress_bar() as progress:
        found = measure_maps(
            source.model,
            tokens,
            upstream,
            downstream,
            source.documents,
            domain=arguments.domain,
            entries=arguments.entries,
            wanted=arguments.tokens,
            batch_size=arguments.batch_size,
            bootstrap=arguments.bootstrap,
            seed=arguments.seed,
            progress=progress,
            **leave_keywords(arguments),
        )
    result = {"model": arguments.model_name, **source.facts, **found}
    with shown(source.told() + _text(result)):
        write_json(arguments.json, result)
    show_written([(arguments.json, "the figures")])
    return 0


def _text(result: dict[str, Any]) -> str:
    headings = ("map", "fitted on", "latents explained", f"ΔCE in {result['domain']}", "ΔCE elsewhere")
    rows = [
        [
            row["method"],
            row["fitted_on"],
            percent(row["explained"]),
            with_interval(row["inside"], row["inside_ci95"]),
            with_interval(row["outside"], row["outside_ci95"]),
        ]
        for row in result["rows"]
    ]
    head = f"Latents at {result['downstream']}, predicted from those at {result['upstream']} and spliced in"
    head += left_line(result["mask"])
    return text_table(headed(headings, rows), rows, before=head, left=2, after=_LEGEND)
