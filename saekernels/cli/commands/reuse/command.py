"""`saekernels reuse`: how much of a dictionary domains share, and what the latents of one are worth elsewhere."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from saekernels.cli.commands.replacement.command import fill, load_layers
from saekernels.cli.options.arguments import Parser, at_least, names_of, not_empty
from saekernels.cli.options.inputs import pick_device
from saekernels.cli.options.leave import add_leave
from saekernels.cli.options.output import show_written, shown, write_json
from saekernels.cli.options.report_files import check_outputs
from saekernels.cli.options.source import BOS, Source, add_source, fill_from_example, load_source
from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.display.progress import progress_bar
from saekernels.errors import InputError
from saekernels.eval.report.reuse.page import reuse_page
from saekernels.eval.report.reuse.text import as_text
from saekernels.eval.studies.reuse.measure import measure_reuse
from saekernels.eval.studies.reuse.options import PARTS, Options
from saekernels.eval.text.windows import Tokens, context_of
from saekernels.files.checked import write_whole
from saekernels.splice.leave import Leave


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "reuse",
        help="how much of a dictionary domains share, what one's latents are worth elsewhere",
        usage="saekernels reuse [--model DIR --sae SITE=PATH ... --data FILE ...] [option ...]",
        description="Measure, for each SAE spliced in alone or for a cross-layer transcoder as a whole, which latents "
        "carry each domain's loss and activation, "
        "how much of that other domains' text shares, how both grow with the domains and from narrow slices to broad "
        "ones, whether latents of two layers that are linked in one domain are linked in others, and what the loss is "
        "if only the latents that matter most in one domain are allowed, there and elsewhere. Domains need four "
        "documents each; intervals are by jackknife. Without --model, --sae and --data: the bundled example.",
        examples=(
            ("saekernels reuse --json reuse.json --html reuse.html", "the bundled example"),
            ("saekernels reuse --parts sharing --sae model.layers.1=sae --data texts/ --domain-field topic", ""),
            ("saekernels reuse --model gpt2 --data texts/ --sae transformer.h.6=sae --latents 256 1024", ""),
        ),
    )
    add_source(parser)
    add_leave(parser)
    _add_reuse(parser)
    output = parser.group("output")
    output.add_argument("--json", metavar="PATH", type=not_empty, help="write the result as JSON")
    output.add_argument("--html", metavar="PATH", type=not_empty, help="write one HTML page with the curves")
    parser.set_defaults(run=run)


def _add_reuse(parser: Parser) -> None:
    group = parser.group("reuse")
    parts = "what to measure, comma-separated"
    group.add_argument("--parts", metavar="PARTS", type=names_of(PARTS, at_least_one=True), default=PARTS, help=parts)
    sizes = "transfer: how many of a domain's latents are allowed (default: a 32nd, an 8th and half of them)"
    clt = "a cross-layer transcoder in place of --sae, as one dictionary: all its layers, with codes of the clean model"
    group.add_argument("--clt", metavar="PATH", type=not_empty, help=clt)
    sites = "--clt: where each layer reads and writes, 'READ -> WRITE' (default: as the files say)"
    group.add_argument("--sites", metavar="SITE", type=not_empty, nargs="+", help=sites)
    group.add_argument("--latents", metavar="M", type=at_least(1), nargs="+", help=sizes)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write the file."""
    _fill(arguments)
    check_outputs(arguments)
    if arguments.latents and "transfer" not in arguments.parts:
        raise InputError("--latents: it is about the part transfer, and --parts leaves that out")
    device = pick_device(arguments.device)
    clt = load_layers("clt", arguments.clt, device, arguments.sae_dtype) if arguments.clt else None
    result = reuse_of(source := load_source(arguments, device), arguments, arguments.parts, arguments.latents, clt)
    drawn = reuse_page(result) if arguments.html else ""
    with shown(source.told() + as_text(result)):
        write_json(arguments.json, result)
        if arguments.html:
            write_whole(arguments.html, drawn)
    told = "the figures, of every SAE and pair of domains"
    show_written([(arguments.html, "open it in a browser"), (arguments.json, told)])
    return 0


def _fill(arguments: argparse.Namespace) -> None:
    """What is not given comes from the bundled example."""
    if not arguments.clt:
        if arguments.sites:
            raise InputError("--sites: needs --clt")
        fill_from_example(arguments)
    elif arguments.sae:
        raise InputError("--sae: not with --clt, whose layers are one dictionary")
    elif arguments.device_map:
        raise InputError("--device-map: not with --clt, whose layers are on one device")
    else:
        fill(arguments)


def reuse_of(
    source: Source,
    arguments: argparse.Namespace,
    parts: Sequence[str] = PARTS,
    latents: Sequence[int] | None = None,
    clt: CrossLayerTranscoder | None = None,
) -> dict[str, Any]:
    """The measurement of the source's SAEs, or of a transcoder across layers; JSON-ready."""
    context = context_of(source.model, source.tokenizer, arguments.context)
    options = Options(
        parts=parts,
        latents=latents,
        rule=Leave(arguments.leave_first, arguments.leave_norm),
        wanted=arguments.tokens,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    tokens = Tokens(source.tokenizer, context, bos=BOS[arguments.bos])
    with progress_bar() as progress:
        found = measure_reuse(
            source.model,
            tokens,
            source.saes if clt is None else clt,
            source.documents,
            options,
            sites=None if clt is None else arguments.sites,
            progress=progress,
        )
    found["run"]["command"] = shlex.join(["saekernels", *arguments.argv])
    return {"model": arguments.model_name, "context": context, **source.facts, **found}
