"""`saekernels monitor`: events of chosen latents, token by token, while SAEs are spliced in."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from typing import Any

from saekernels.cli.options.arguments import not_empty
from saekernels.cli.options.leave import add_leave, leave_keywords, left_line
from saekernels.cli.options.output import show_written, shown
from saekernels.cli.options.source import BOS, add_source, fill_from_example, load_source
from saekernels.display.numbers import number, percent, signed
from saekernels.display.progress import progress_bar
from saekernels.display.tables import text_table
from saekernels.eval.studies.monitor import Event, Watch, monitor
from saekernels.eval.text.windows import Tokens, context_of
from saekernels.files.checked import check_writable, write_whole

_HEADINGS = ("watched", "events", "of tokens", "mean value", "ΔCE at events", "ΔCE elsewhere")
_LEGEND = "ΔCE: cross-entropy of the spliced model minus that of the clean one, nats per token."
_WATCH = re.compile(r"(?P<entry>.+):(?P<latent>\d+)(>(?P<threshold>[-+.\deE]+))?")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "monitor",
        help="watch chosen latents over a text: events per token, and what the splice costs there",
        usage="saekernels monitor --watch SITE:LATENT ... [option ...]",
        description="Splice the SAEs in, and report every token at which a watched latent exceeds its threshold. "
        "Without --model, --sae and --data: the bundled example.",
        examples=(
            ("saekernels monitor --watch 'model.layers.2:17>0.5' model.layers.3:4", "the bundled example"),
            ("saekernels monitor --watch model.layers.2:17 --events events.jsonl", "and every event"),
        ),
    )
    add_source(parser)
    add_leave(parser)
    form = "a latent and the threshold that makes an event, SITE:LATENT or 'SITE:LATENT>THRESHOLD'; 0 without one"
    watched = parser.group("watches")
    watched.add_argument("--watch", metavar="SITE:LATENT", type=watch, nargs="+", required=True, help=form)
    output = parser.group("output")
    output.add_argument("--events", metavar="PATH", type=not_empty, help="write one JSON object per event")
    parser.set_defaults(run=run)


def watch(text: str) -> Watch:
    """ "SITE:LATENT>THRESHOLD"."""
    match = _WATCH.fullmatch(text)
    try:
        assert match is not None
        return Watch(match["entry"], int(match["latent"]), float(match["threshold"] or 0.0))
    except (AssertionError, ValueError):
        message = f"need SITE:LATENT or SITE:LATENT>THRESHOLD, for example model.layers.3:17>0.5, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def run(arguments: argparse.Namespace) -> int:
    """Watch, print a table, write the events."""
    fill_from_example(arguments)
    if arguments.events:
        check_writable(arguments.events, "--events")
    source = load_source(arguments)
    context = context_of(source.model, source.tokenizer, arguments.context)
    tokens = Tokens(source.tokenizer, context, bos=BOS[arguments.bos])
    events: list[str] = []

    def keep(event: Event) -> None:
        if arguments.events:
            events.append(json.dumps(asdict(event), ensure_ascii=False))

    with progress_bar() as progress:
        found = monitor(
            source.model,
            tokens,
            source.saes,
            arguments.watch,
            source.documents,
            keep,
            wanted=arguments.tokens,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            progress=progress,
            **leave_keywords(arguments),
        )
    rows = [
        [
            f"{one.entry}:{one.latent} > {one.threshold:g}",
            f"{one.events:,}",
            percent(one.share),
            number(one.mean_value),
            signed(one.delta_ce_at_events),
            signed(one.delta_ce_elsewhere),
        ]
        for one in found
    ]
    text = text_table(_HEADINGS, rows, after=_LEGEND + left_line(leave_keywords(arguments)))
    with shown(source.told() + text):
        if arguments.events:
            write_whole(arguments.events, "".join(line + "\n" for line in events))
    show_written([(arguments.events, "one JSON object a line")])
    return 0
