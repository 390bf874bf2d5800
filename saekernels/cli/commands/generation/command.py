"""`saekernels generate`: a model writes with SAEs spliced in, and what fires is told as it happens."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from typing import Any

from saekernels.cli.commands.generation.prompts import batched, encode, read_prompts
from saekernels.cli.commands.generation.session import Session
from saekernels.cli.commands.generation.text import legend
from saekernels.cli.options.arguments import Parser, at_least, not_empty
from saekernels.cli.options.further_saes import edit
from saekernels.cli.options.leave import add_leave
from saekernels.cli.options.output import say, show_written, showing, write_json
from saekernels.cli.options.source import (
    BOS,
    add_bos_and_seed,
    add_model,
    add_precision,
    fill_from_example,
    load_source,
)
from saekernels.errors import InputError
from saekernels.files.checked import check_writable, same_file, write_whole
from saekernels.generation.watch import Watch

_WATCH = re.compile(r"(?P<site>([^<>]|->)+?)(:(?P<latent>\d+))?(>(?P<threshold>[-+.\deE]+))?")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="let the model write with SAEs spliced in: what fires, when and how much, with and without edits",
        usage="saekernels generate PROMPT ... [option ...]",
        description="Let the model go on from a prompt with the SAEs spliced in, and tell which latents fire, at which "
        "token and how much. With edits: both texts side by side. Without --model and --sae: the bundled example.",
        examples=(
            ("saekernels generate 'def main('", "the strongest latents"),
            ("saekernels generate 'def main(' --edit model.layers.2:38:zero", "with and without it"),
            ("saekernels generate 'def main(' --watch 'model.layers.2:865>5' --keep-error", ""),
            ("saekernels generate --prompts prompts.txt --stop 'model.layers.2:865>8' --json out.json", ""),
        ),
    )
    _add_prompts(parser)
    add_model(parser)
    of = "only these of the SAEs' sites (default: all)"
    parser.group("model").add_argument("--sites", metavar="SITE", type=not_empty, nargs="+", help=of)
    _add_watches(parser)
    _add_sampling(parser)
    add_leave(parser)
    add_precision(parser, "prompts")
    output = parser.group("output")
    lines = "write a JSON object a line for every token, event and end; -: to stdout as they happen, in place of text"
    output.add_argument("--events", metavar="PATH|-", type=not_empty, help=lines)
    output.add_argument("--json", metavar="PATH", type=not_empty, help="write texts and events as JSON")
    parser.set_defaults(run=run)


def _add_prompts(parser: Parser) -> None:
    group = parser.group("prompts")
    group.add_argument("prompt", metavar="PROMPT", nargs="*", help="a text to go on from")
    files = "more of them: a line each of a .txt file or of stdin (-), the text of each record of files of other kinds "
    files += "(default: none)"
    group.add_argument("--prompts", metavar="FILE|-", type=not_empty, help=files)
    add_bos_and_seed(group, "of sampling")


def _add_watches(parser: Parser) -> None:
    group = parser.group("watches and edits")
    form = "what makes an event: SITE:LATENT, or SITE for all latents, and behind > a threshold, 0 without one "
    form += "(default: all latents of every site, unless --stop names some)"
    group.add_argument("--watch", metavar="SITE[:LATENT][>V]", type=watch, nargs="+", action="extend", help=form)
    stop = "the same, and a text ends with the new token at which it happens (default: none)"
    group.add_argument("--stop", metavar="SITE[:LATENT][>V]", type=watch, nargs="+", action="extend", help=stop)
    edits = "edit a latent: zero, scale:V, clamp:LOW:HIGH, set:V or add:V"
    group.add_argument(
        "--edit", metavar="SITE:LATENT:OP", type=edit, nargs="+", action="extend", default=[], help=edits
    )
    keep = "put no reconstruction in: SAEs only watch, and an edit changes nothing beside its latent"
    group.add_argument("--keep-error", action="store_true", help=keep)


def _add_sampling(parser: Parser) -> None:
    group = parser.group("how it writes")
    group.add_argument("--max-new-tokens", metavar="N", type=at_least(1), default=40, help="of each text")
    group.add_argument("--temperature", metavar="V", type=number, default=0.0, help="of sampling; 0: greedy")
    group.add_argument("--top-p", metavar="P", type=number, default=1.0, help="sample from this share of probability")
    group.add_argument("--cache", choices=("dynamic", "static"), default="dynamic", help="of keys and values")


def watch(text: str) -> Watch:
    """ "SITE", "SITE:LATENT" or either with ">THRESHOLD"."""
    match = _WATCH.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        latent = None if match["latent"] is None else int(match["latent"])
        return Watch(match["site"], latent, float(match["threshold"] or 0.0))
    except ValueError as error:
        reason = f": {error}" if isinstance(error, InputError) else ""
        message = f"need SITE:LATENT>THRESHOLD, for example model.layers.3:17>0.5, got {text!r:.80}{reason}"
        raise argparse.ArgumentTypeError(message) from None


def number(text: str) -> float:
    """A finite number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"need a number from 0, got {text!r:.40}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Write, show, keep."""
    texts = read_prompts(arguments.prompt, arguments.prompts)
    fill_from_example(arguments, None)
    live = arguments.events == "-"
    if not 0 < arguments.top_p <= 1:
        raise InputError(f"--top-p: got {arguments.top_p:g}, need a number above 0, at most 1")
    if arguments.top_p < 1 and not arguments.temperature:
        raise InputError("--top-p: samples, and --temperature is 0, which does not: need one above 0")
    if arguments.seed >= 2**63:
        raise InputError(f"--seed: need less than 2^63, got {arguments.seed}")
    _check_outputs(arguments)
    source = load_source(arguments, read=False)
    new = arguments.max_new_tokens
    prompts = encode(texts, source.model, source.tokenizer, BOS[arguments.bos], new)
    with showing(bool(arguments.json or (arguments.events and not live))) as tell:
        session = Session(arguments, source, tell)
        if not live:
            tell(source.told() + legend(session.watches, session.letters))
        records: list[dict[str, Any]] = []
        finished = 0  # lines of events, of those prompts
        try:
            for batch in batched(prompts, arguments.batch_size):
                records += session.write(batch)
                finished = len(session.lines)
        except (Exception, KeyboardInterrupt) as error:
            del session.lines[finished:]
            kept = _keep(arguments, session, source.facts, records, len(prompts)) if records else ""
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(kept) from None
            if kept:
                say(f"saekernels generate: {kept}")
            raise
        _keep(arguments, session, source.facts, records, len(prompts))
    if not live:
        show_written([(arguments.events, "one JSON object a line"), (arguments.json, "texts and events")])
    return 0


def _keep(
    arguments: argparse.Namespace, session: Session, facts: dict[str, str], records: list[dict[str, Any]], prompts: int
) -> str:
    """Write the files that were asked for, of the prompts that were finished; returns which were, of how many."""
    complete = len(records) == prompts
    write_json(arguments.json, {**_result(arguments, session, facts, records), "complete": complete})
    events = arguments.events if arguments.events != "-" else None
    if events:
        write_whole(events, "".join(session.lines))
    written = " and ".join(path for path in (events, arguments.json) if path)
    return f"{written} was written, of {len(records)} of {prompts} prompts" if written else ""


def _result(
    arguments: argparse.Namespace, session: Session, facts: dict[str, str], records: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "model": arguments.model_name,
        **facts,
        "command": shlex.join(["saekernels", *arguments.argv]),
        "sites": list(session.saes),
        "watches": [{"site": one.site, "latent": one.latent, "threshold": one.threshold, "stop": one.stop}
                    for one in session.watches],
        "keep_error": arguments.keep_error,
        "prompts": records,
    }  # fmt: skip


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Before anything is written: can it be, and over nothing that is read or written, too?"""
    if arguments.json == "-":
        raise InputError("--json: got -, need a path; --events - writes to stdout")
    live = arguments.events == "-"
    outputs = {"--json": arguments.json, "--events": None if live else arguments.events}
    given = {option: path for option, path in outputs.items() if path}
    for option, path in given.items():
        check_writable(path, option)
        if arguments.prompts not in (None, "-") and same_file(path, arguments.prompts):
            raise InputError(f"{option}: {path} is the file of --prompts; it would be overwritten")
    if len(given) == 2 and same_file(*given.values()):
        raise InputError(f"--json and --events: both are {arguments.json}")
