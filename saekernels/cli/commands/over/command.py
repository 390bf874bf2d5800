"""`saekernels over`: the same figures at every checkpoint of a training, as curves against the tokens seen."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from saekernels.cli.commands.over.measure import PARTS, Measured, measure_one
from saekernels.cli.commands.over.places import Place, check_saes, places_of
from saekernels.cli.options import checkpoint
from saekernels.cli.options.arguments import Parser, count, names_of, not_empty, site_and_path
from saekernels.cli.options.leave import add_leave, leave_keywords
from saekernels.cli.options.output import showing, write_json
from saekernels.cli.options.report_files import check_outputs, say_where
from saekernels.cli.options.source import add_bootstrap, add_precision, add_text
from saekernels.errors import InputError
from saekernels.eval.report.data import versions
from saekernels.eval.report.over.page import page
from saekernels.eval.report.over.text import as_text
from saekernels.eval.studies.family import read_family
from saekernels.eval.studies.over.worth import training_shares
from saekernels.eval.studies.tasks import load_tasks
from saekernels.files.checked import write_whole

FORMAT = "saekernels-over-1"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "over",
        help="the same figures at every checkpoint of a training",
        usage="saekernels over MODEL ... --sae SITE=PATTERN ... --data FILE ... [option ...]",
        description="Measure a model and its SAEs at several checkpoints of one training, on the same text: loss and "
        "what the splice costs, what of the training it leaves, reuse across domains, narrow probes, narrow tasks.",
        examples=(
            ("saekernels over run/step-* --sae model.layers.1=saes/{}/l1 --data texts/ --html over.html", ""),
            ("saekernels over EleutherAI/pythia-70m@step{0,512,143000} --sae saes/{}/l3 --data texts/", ""),
        ),
    )
    _add_model(parser)
    add_text(parser)
    add_precision(parser)
    add_leave(parser)
    add_bootstrap(parser)
    _add_extras(parser)
    resume = "keep the state of every checkpoint here; the same command goes on where a killed one stopped"
    parser.group("scale and resume").add_argument("--checkpoint", metavar="DIR", type=not_empty, help=resume)
    output = parser.group("output")
    output.add_argument("--json", metavar="PATH", type=not_empty, help="write the record as JSON")
    output.add_argument("--html", metavar="PATH", type=not_empty, help="write one HTML page with the curves")
    parser.set_defaults(run=run)


def _add_model(parser: Parser) -> None:
    model = parser.group("model")
    kinds = "the checkpoints, folders or HUB_ID@REVISION; the number in a folder's or revision's name is its step"
    model.add_argument("model", metavar="MODEL", type=not_empty, nargs="+", help=kinds)
    per_step = "what a step has seen (default: curves are drawn against steps)"
    model.add_argument("--tokens-per-step", metavar="N", type=count, help=per_step)
    habit = "of all of them (default: each one's own)"
    model.add_argument("--tokenizer", metavar="DIR|HUB_ID", type=not_empty, help=habit)
    where = "the SAEs of a site, {} where the checkpoint's name belongs; without {} one SAE for all of them"
    model.add_argument(
        "--sae", metavar="[SITE=]PATTERN", type=site_and_path, nargs="+", action="extend", required=True, help=where
    )
    trust = "run the Python code that the model's or tokenizer's checkpoint brings; without it such a one is refused"
    model.add_argument("--trust-remote-code", action="store_true", help=trust)
    checkpoint.add_options(parser, checkpoint.SAES)


def _add_extras(parser: Parser) -> None:
    extras = parser.group("extras")
    parts = "what to measure beside the losses, comma-separated; none: nothing"
    extras.add_argument("--parts", metavar="PARTS", type=names_of(PARTS), default=PARTS, help=parts)
    site = "breadth: of which of the SAEs' sites (default: the middle one)"
    extras.add_argument("--site", metavar="SITE", type=not_empty, help=site)
    family = "a table of `saekernels scaling fit`: also what the losses are worth in it (default: the training alone)"
    extras.add_argument("--family", metavar="TABLE", type=not_empty, help=family)
    tasks = "narrow tasks to set beside the whole: ioi, wh_question, or .yaml files of your own"
    extras.add_argument("--tasks", metavar="NAME|FILE", type=not_empty, nargs="+", action="extend", help=tasks)


def run(arguments: argparse.Namespace) -> int:
    """Measure every checkpoint in turn, print the tables, write the files."""
    if not arguments.data:
        raise InputError("--data: need files, directories or a data set id")
    check_outputs(arguments)
    if arguments.tokens_per_step == 0:
        raise InputError("--tokens-per-step: need at least 1, got 0")
    if "breadth" in arguments.parts and any(leave_keywords(arguments).values()):
        raise InputError("--parts: probes of breadth touch every position; not with --leave-first or --leave-norm")
    if arguments.site and "breadth" not in arguments.parts:
        raise InputError("--site: it is about the part breadth, and --parts leaves that out")
    places = places_of(arguments.model)
    check_saes(arguments.sae, places)
    family = (read_family(arguments.family), arguments.family) if arguments.family else None
    tasks = load_tasks(arguments.tasks) if arguments.tasks else []
    measured = []
    with showing() as say:
        for place in places:
            try:
                measured.append(measure_one(arguments, place, family, tasks))
            except InputError as error:
                # What fails at the first one is of the command; later on it is of that checkpoint.
                raise InputError(f"MODEL {place.name}: {error}") if measured else error from None
            say(measured[-1].told + "\n")
        result = record(arguments, places, measured)
        drawn = page(result) if arguments.html else ""
        say("\n" + as_text(result))
        write_json(arguments.json, result)
        if arguments.html:
            write_whole(arguments.html, drawn)
    say_where(arguments, "the figures of all checkpoints")
    return 0


def record(arguments: argparse.Namespace, places: list[Place], measured: list[Measured]) -> dict[str, Any]:
    """The record: what was asked for, and every checkpoint's point; JSON-ready."""
    each = arguments.tokens_per_step
    seen = [place.step * (each or 1) for place in places]
    tables = [one.table for one in measured]
    text = measured[0].text
    shares = training_shares(seen, tables, text["context"], arguments.bootstrap, arguments.seed)
    rows = [
        {"name": place.name, "step": place.step, "seen": at, **one.point, "training_share": share}
        for place, at, one, share in zip(places, seen, measured, shares, strict=True)
    ]
    return {
        "format": FORMAT,
        "axis": "steps" if each is None else "tokens seen",
        "text": text,
        "family": arguments.family and Path(arguments.family).name,
        "run": {"command": shlex.join(["saekernels", *arguments.argv]), "versions": versions()},
        "checkpoints": rows,
        "notes": gathered_notes(places, measured),
    }


def gathered_notes(places: list[Place], measured: list[Measured]) -> list[str]:
    """Each once; of which checkpoints, where it is not of all."""
    where: dict[str, list[str]] = {}
    for place, one in zip(places, measured, strict=True):
        for note in dict.fromkeys(one.notes):
            where.setdefault(note, []).append(place.name)
    return [note if len(of) == len(places) else f"{', '.join(of)}: {note}" for note, of in where.items()]
