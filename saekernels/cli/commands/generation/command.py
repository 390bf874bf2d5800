"""`saekernels generate`: a model writes with SAEs spliced in, and what fires is told as it happens."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

import torch

from saekernels.cli.commands.generation.live import Lines, Streamed, Text, fired, marks
from saekernels.cli.commands.generation.prompts import Prompt, batched, encode, padded, read_prompts
from saekernels.cli.commands.generation.text import ending, legend, parting, side_by_side, strongest
from saekernels.cli.options.arguments import Parser, at_least, not_empty
from saekernels.cli.options.further_saes import edit
from saekernels.cli.options.leave import add_leave, leave_keywords
from saekernels.cli.options.output import show, show_written, write_json
from saekernels.cli.options.source import (
    BOS,
    Source,
    add_bos_and_seed,
    add_model,
    add_precision,
    fill_from_example,
    load_source,
)
from saekernels.errors import InputError
from saekernels.eval.text.windows import special_ids
from saekernels.files.checked import check_writable, same_file, write_whole
from saekernels.generation.texts import Generated
from saekernels.generation.watch import Watch
from saekernels.generation.watching import watching
from saekernels.parallel.devices import input_device
from saekernels.sae.edits import Edit

_WATCH = re.compile(r"(?P<site>([^>]|->)+?)(:(?P<latent>\d+))?(>(?P<threshold>[-+.\deE]+))?")


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
    form += "(default: all latents of every site)"
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
    if arguments.seed >= 2**63:
        raise InputError(f"--seed: need less than 2^63, got {arguments.seed}")
    _check_outputs(arguments)
    source = load_source(arguments, read=False)
    session = _Session(arguments, source)
    new = arguments.max_new_tokens
    prompts = encode(texts, source.model, source.tokenizer, BOS[arguments.bos], new)
    if not live:
        show(source.told() + legend(session.watches, session.letters))
    records = [one for batch in batched(prompts, arguments.batch_size) for one in session.write(batch)]
    result = {
        "model": arguments.model_name,
        **source.facts,
        "command": shlex.join(["saekernels", *arguments.argv]),
        "sites": list(session.saes),
        "watches": [{"site": one.site, "latent": one.latent, "threshold": one.threshold, "stop": one.stop}
                    for one in session.watches],
        "keep_error": arguments.keep_error,
        "prompts": records,
    }  # fmt: skip
    write_json(arguments.json, result)
    if arguments.events and not live:
        write_whole(arguments.events, "".join(session.lines))
    if not live:
        show_written([(arguments.events, "one JSON object a line"), (arguments.json, "texts and events")])
    return 0


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Before anything is written: can it be, and over nothing that is read or written, too?"""
    if arguments.json == "-":
        raise InputError("--json: got -, need a path; --events - writes to stdout")
    live = arguments.events == "-"
    outputs = {"--json": arguments.json, "--events": None if live else arguments.events}
    given = {option: path for option, path in outputs.items() if path}
    for option, path in given.items():
        check_writable(path)
        if arguments.prompts not in (None, "-") and same_file(path, arguments.prompts):
            raise InputError(f"{option}: {path} is the file of --prompts; it would be overwritten")
    if len(given) == 2 and same_file(*given.values()):
        raise InputError(f"--json and --events: both are {arguments.json}")


class _Session:
    """A loaded model, what is watched and edited, and what was told so far."""

    def __init__(self, arguments: argparse.Namespace, source: Source) -> None:
        self.arguments, self.model, self.tokenizer = arguments, source.model, source.tokenizer
        self.saes = _chosen(source.saes, arguments.sites)
        stops = [Watch(one.site, one.latent, one.threshold, stop=True) for one in arguments.stop or ()]
        self.watches = [*(arguments.watch or ()), *stops] or [Watch(site) for site in self.saes]
        self.edits: dict[str, list[Edit]] = {}
        for site, one in arguments.edit:
            self.edits.setdefault(site, []).append(one)
        self.letters = marks(self.watches)
        self.lines: list[str] = []
        self.pad = source.tokenizer.pad_token_id
        self.pad = self.pad if self.pad is not None else source.tokenizer.eos_token_id or 0
        with self._watching(self.edits, None):
            pass  # what does not fit is told before anything is shown

    def write(self, batch: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Let the model go on from each prompt, without and with the edits; show that, and return it as data."""
        live, streams = self.arguments.events == "-", len(batch) == 1 and not self.edits
        versions = [self._version(batch, False, streams and not live)]
        if self.edits:
            versions.append(self._version(batch, True, False))
        records = []
        for row, prompt in enumerate(batch):
            made = [version[row] for version in versions]
            written = [self._written(prompt, one) for one in made]
            parts_at = parting(made[0].ids, made[1].ids) if self.edits else None
            if not live:
                self._show(prompt, made, written, parts_at, streams)
            records.append(
                {"prompt": prompt.text, "tokens": len(prompt.ids), "parts_at": parts_at,
                 "texts": [self._record(*one) for one in zip(made, written, (False, True), strict=False)]}
            )  # fmt: skip
        return records

    def _version(self, batch: Sequence[Prompt], edited: bool, streams: bool) -> list[Generated]:
        live = self.arguments.events == "-"
        lines = Lines(batch, self.tokenizer, edited, show if live else self.lines.append)
        told: list[Any] = [lines] if self.arguments.events else []
        if streams:
            show(f"\n{batch[0].text}")
            told.append(Streamed(batch[0], self.tokenizer, self.letters, show))

        def on_token(row: int, token: int) -> None:
            for one in told:
                one.token(row, token)

        def on_event(event: Any) -> None:
            for one in told:
                one.event(event)

        arguments = self.arguments
        options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
        if arguments.temperature > 0:
            options |= {"temperature": arguments.temperature, "top_p": arguments.top_p, "top_k": 0}
        if arguments.cache == "static":
            options["cache_implementation"] = "static"
        torch.manual_seed(arguments.seed)
        inputs = padded(batch, self.pad, input_device(self.model))
        with self._watching(self.edits if edited else {}, on_event) as watched:
            made = watched.generate(**inputs, on_token=on_token, use_cache=True, pad_token_id=self.pad, **options)
        if arguments.events:
            for row, prompt in enumerate(batch):
                lines.end(row, made[row], self._written(prompt, made[row]))
        return made

    def _watching(self, edits: Any, on_event: Any) -> Any:
        options = {"keep_error": self.arguments.keep_error, "untouched": special_ids(self.tokenizer).tolist()}
        options |= leave_keywords(self.arguments)
        return watching(self.model, self.saes, self.watches, edits=edits, on_event=on_event, **options)

    def _written(self, prompt: Prompt, made: Generated) -> str:
        text = Text(prompt, self.tokenizer)
        for token in made.ids:
            text.added(token)
        return text.written

    def _show(
        self, prompt: Prompt, made: Sequence[Generated], written: Sequence[str], parts_at: int | None, streamed: bool
    ) -> None:
        if self.edits:
            show(f"\n{prompt.text}\n\n" + side_by_side(written[0], written[1], parts_at))
        elif not streamed:
            show(f"\n{prompt.text}{written[0]}")
        read = len(prompt.ids) + len(made[-1].ids) - (made[-1].stopped_by is None)
        show(f"\n\n{ending(made[-1])}\n\n{strongest(made[-1], self.tokenizer, read)}")

    def _record(self, made: Generated, text: str, edited: bool) -> dict[str, Any]:
        stopped_by = None if made.stopped_by is None else fired(made.stopped_by)
        told = {"edited": edited, "text": text, "ids": made.ids, "reason": made.reason, "stopped_by": stopped_by}
        return {**told, "events": [{**fired(event), "id": event.token} for event in made.events]}


def _chosen(saes: dict[str, Any], sites: Sequence[str] | None) -> dict[str, Any]:
    """The SAEs of these sites, in the order of the model's; all for None."""
    several = [entry for entry in saes if "#" in entry]
    if several:
        raise InputError(f"--sae: {several[0]} is a further SAE of its site, need one for each")
    for site in sites or ():
        if site not in saes:
            raise InputError(f"--sites: there is no SAE {site!r}; there are {', '.join(saes)}")
    return {site: sae for site, sae in saes.items() if sites is None or site in sites}
