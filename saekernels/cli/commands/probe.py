"""`saekernels probe`: probes of a label in activations, SAEs' latents and errors, in and out of distribution."""

from __future__ import annotations

import argparse
import json
import shlex
from collections import Counter
from typing import Any

from saekernels.cli.options.arguments import Parser, at_least, not_empty
from saekernels.cli.options.leave import add_leave, leave_keywords
from saekernels.cli.options.output import show_written, shown
from saekernels.cli.options.source import (
    BOS,
    EXAMPLE,
    add_bootstrap,
    add_bos_and_seed,
    add_model,
    add_precision,
    fill_from_example,
    load_source,
)
from saekernels.display.progress import progress_bar
from saekernels.errors import InputError
from saekernels.eval.report.probe_text import print_probes
from saekernels.eval.studies.probe.activations import POSITIONS
from saekernels.eval.studies.probe.measure import measure_probes
from saekernels.eval.studies.probe.split import HOW
from saekernels.eval.text.labelled import LabelFields, LabelledSet, read_labelled
from saekernels.eval.text.sources import files_of
from saekernels.files.checked import check_writable, write_whole


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "probe",
        help="what a label's probe finds in latents, activations and the SAE's error, in and out of distribution",
        usage="saekernels probe [--model DIR --sae SITE=PATH ... --labels FILE ...] [option ...]",
        description="Fit linear probes of a label (true or false, say) on the activations at each site, on their "
        "reconstruction, on the SAE's error and on a few latents; test them on held-out texts, of the same kinds and "
        "of others; and report what the splice does to the model's own answer. "
        "Without --model, --sae and --labels: the bundled example.",
        examples=(
            ("saekernels probe", "the bundled example"),
            ("saekernels probe --labels texts.csv --label-field toxic --by source", "texts of your own"),
            ("saekernels probe --position mean --latents 1 10 --json probe.json", ""),
        ),
    )
    add_model(parser)
    _add_texts(parser)
    add_leave(parser)
    add_precision(parser)
    _add_probes(parser)
    add_bootstrap(parser)
    parser.group("output").add_argument("--json", metavar="PATH", type=not_empty, help="write the result as JSON")
    parser.set_defaults(run=run)


def _add_texts(parser: Parser) -> None:
    texts = parser.group("texts")
    kinds = ".jsonl, .json, .csv, .tsv or .parquet files, each a set of its own: a text and its label in each record"
    texts.add_argument("--labels", metavar="FILE", type=not_empty, nargs="+", action="extend", help=kinds + EXAMPLE)
    texts.add_argument("--text-field", metavar="NAME", default="text", help="the field with the text")
    texts.add_argument("--label-field", metavar="NAME", default="label", help="the field with the label")
    positive = "the label of the positive class, all others being negative (default: of two, the last by alphabet)"
    texts.add_argument("--positive", metavar="LABEL", type=not_empty, help=positive)
    group = "the field that texts share that say the same (default: group, else every text is alone)"
    texts.add_argument("--group-field", metavar="NAME", type=not_empty, help=group)
    by = "fields that name a distribution, to be out of (default: template, language and domain, where texts have them)"
    texts.add_argument("--by", metavar="FIELD", type=not_empty, nargs="+", help=by)
    add_bos_and_seed(texts)


def _add_probes(parser: Parser) -> None:
    probes = parser.group("probes")
    where = "last: the last token of a text; mean: over all of them but the first"
    probes.add_argument("--position", choices=POSITIONS, default="last", help=where)
    counts = "latents that a sparse probe reads"
    probes.add_argument("--latents", metavar="K", type=at_least(1), nargs="+", default=[1, 5, 20], help=counts)
    train = "out of distribution: fit on the rest of a field's values and test on one, or the other way round"
    probes.add_argument("--train", choices=HOW, default="rest", help=train)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write."""
    fill_from_example(arguments, "labels")
    if arguments.json:
        check_writable(arguments.json, "--json")
    sets = _sets(arguments)
    source = load_source(arguments, read=False)
    with progress_bar() as progress:
        found = measure_probes(
            source.model,
            source.tokenizer,
            source.saes,
            sets,
            position=arguments.position,
            latents=sorted(set(arguments.latents)),
            train=arguments.train,
            bos=BOS[arguments.bos],
            batch_size=arguments.batch_size,
            bootstrap=arguments.bootstrap,
            seed=arguments.seed,
            progress=progress,
            **leave_keywords(arguments),
        )
    command = shlex.join(["saekernels", *arguments.argv])
    result = {"model": arguments.model_name, **source.facts, "command": command, **found}
    with shown(source.told() + print_probes(result)):
        if arguments.json:
            write_whole(arguments.json, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    show_written([(arguments.json, "the figures")])
    return 0


def _sets(arguments: argparse.Namespace) -> list[LabelledSet]:
    fields = LabelFields(
        arguments.text_field,
        arguments.label_field,
        arguments.group_field,
        None if arguments.by is None else tuple(dict.fromkeys(arguments.by)),
    )
    made = []
    for name in arguments.labels:
        try:
            files = files_of(name)
        except InputError as error:
            raise InputError(f"labels: {str(error).removeprefix('data: ')}") from error
        if not files:
            raise InputError(f"labels: {name} does not exist")
        made += [read_labelled(file, fields, arguments.positive) for file in files]
    doubled = [name for name, count in Counter(one.name for one in made).items() if count > 1]
    if doubled:
        raise InputError(f"labels: two files are named {doubled[0]!r}; give each set a name of its own")
    return made
