"""`saekernels breadth`: what narrow probes and SAEs cost inside the distribution they fit, and outside."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from saekernels.cli.options.arguments import at_least, not_empty
from saekernels.cli.options.output import show_written, shown, write_json
from saekernels.cli.options.report_files import check_outputs
from saekernels.cli.options.source import BOS, Source, add_bootstrap, add_source, fill_from_example, load_source
from saekernels.display.progress import progress_bar
from saekernels.errors import InputError
from saekernels.eval.passes.moments import fixed_k
from saekernels.eval.passes.plan import site_of
from saekernels.eval.report.breadth_page import breadth_page
from saekernels.eval.report.breadth_text import print_breadth
from saekernels.eval.studies.breadth import measure_breadth
from saekernels.eval.text.slice_choice import choose_slices
from saekernels.eval.text.slice_counts import Minimum
from saekernels.eval.text.windows import Tokens, chosen, context_of
from saekernels.files.checked import write_whole

_SHOWN_RANKS = (1, 8)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "breadth",
        help="narrow probes beside SAEs: what each costs inside and outside of its slice",
        usage="saekernels breadth [--model DIR --sae SITE=PATH ... --data FILE ...] [option ...]",
        description="Fit affine probes on ever broader slices of the text (one token, one template, one domain, "
        "everything) and splice them and the SAE inside and outside of each. What is not named is chosen so that the "
        "highest rank can be fitted and measured. Without --model, --sae and --data: the bundled example.",
        examples=(
            ("saekernels breadth", "the bundled example"),
            ("saekernels breadth --site model.layers.1 --ranks 1 64 --html breadth.html", ""),
        ),
    )
    add_source(parser)
    slices = parser.group("probes and slices")
    slices.add_argument("--site", metavar="SITE", type=not_empty, help="of the SAEs' sites (default: the middle one)")
    ranks = "ranks of the probes (default: 1, 8 and the SAE's L0)"
    slices.add_argument("--ranks", metavar="R", type=at_least(1), nargs="+", help=ranks)
    domain = "the domain slice (default: chosen)"
    slices.add_argument("--domain", metavar="NAME", type=not_empty, help=domain)
    pattern = "the template slice, a regular expression within the domain "
    pattern += "(default: lines with one first word)"
    slices.add_argument("--template", metavar="REGEX", type=not_empty, help=pattern)
    token = "the token slice (default: one that is frequent enough)"
    slices.add_argument("--token", metavar="TEXT", type=not_empty, help=token)
    add_bootstrap(parser)
    output = parser.group("output")
    output.add_argument("--json", metavar="PATH", type=not_empty, help="write the result as JSON")
    output.add_argument("--html", metavar="PATH", type=not_empty, help="write one HTML page with the plot")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write the files."""
    fill_from_example(arguments)
    check_outputs(arguments)
    named = (arguments.domain, arguments.template, arguments.token)
    source = load_source(arguments, domains=filter(None, [arguments.domain]))
    result = breadth_of(source, arguments, arguments.site, named, arguments.ranks)
    with shown(source.told() + print_breadth(result)):
        write_json(arguments.json, result)
        if arguments.html:
            write_whole(arguments.html, breadth_page(result))
    show_written([(arguments.html, "open it in a browser"), (arguments.json, "the figures")])
    return 0


def breadth_of(
    source: Source,
    arguments: argparse.Namespace,
    site: str | None,
    named: tuple[str | None, str | None, str | None] = (None, None, None),
    ranks: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The measurement, JSON-ready; `named`: domain, template and token of the slices, None for a choice.

    Raises InputError where no slice, or not the named one, has enough positions for the highest rank.
    """
    entry = entry_of(list(source.saes), site)
    sae = source.saes[entry]
    context = context_of(source.model, source.tokenizer, arguments.context)
    tokens = Tokens(source.tokenizer, context, bos=BOS[arguments.bos])
    sample = list(chosen(source.documents, tokens, arguments.tokens, arguments.seed))
    ranks = ranks or sorted({*_SHOWN_RANKS, fixed_k(sae) or 32})
    slices, notes = choose_slices(sample, tokens, Minimum(min(max(ranks), sae.d_in, sae.d_out)), *named)
    with progress_bar() as progress:
        found = measure_breadth(
            source.model,
            tokens,
            site_of(entry),
            sae,
            (document for document, _ in sample),
            slices,
            ranks=ranks,
            wanted=arguments.tokens,
            batch_size=arguments.batch_size,
            bootstrap=arguments.bootstrap,
            seed=arguments.seed,
            progress=progress,
        )
    return {
        "model": arguments.model_name,
        **source.facts,
        **found.to_dict(slices.names(source.tokenizer)),
        "notes": notes,
    }


def entry_of(entries: Sequence[str], site: str | None, option: str = "--site") -> str:
    """The SAE at that site; the middle one for None. Raises InputError if there is none."""
    if site is None:
        return entries[len(entries) // 2]
    if site not in entries:
        raise InputError(f"{option}: no SAE was given for {site!r}; there are {', '.join(entries)}")
    return site
