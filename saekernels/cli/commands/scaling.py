"""`saekernels scaling fit`: measure a family of models on the same tokens, for `saekernels eval --family`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from saekernels.cli.options.arguments import at_least, not_empty, tokens_or_all
from saekernels.cli.options.inputs import DTYPES, pick_device
from saekernels.cli.options.models import ModelNames, load_model, load_tokenizer
from saekernels.cli.options.output import showing
from saekernels.display.numbers import readable
from saekernels.display.progress import progress_bar
from saekernels.errors import InputError, first_line
from saekernels.eval import load_documents
from saekernels.eval.studies.family import Member, make_family
from saekernels.eval.studies.family_losses import make_member, measure_losses
from saekernels.files.checked import check_writable, read_json


def add_parser(commands: Any) -> None:
    examples = (("saekernels scaling fit --model small medium large --data texts/ --out family.json", ""),)
    scaling = commands.add_parser(
        "scaling",
        help="measure a family of models, for effective compute",
        description="Measure a family of models, for effective compute.",
        examples=examples,
    )
    parts = scaling.add_subparsers(title="parts", dest="part", metavar="PART", required=True)
    parser = parts.add_parser(
        "fit",
        help="measure models on the same tokens and store a table",
        usage="saekernels scaling fit --model DIR ... --data FILE ... --out PATH [option ...]",
        description="Measure every model's loss on the same documents. The table says what loss each size has; "
        "`saekernels eval --family TABLE` reads off it what a spliced model is worth. All models need one tokenizer.",
        examples=examples,
    )
    model = parser.group("model")
    models = "the family, the smallest first"
    model.add_argument("--model", metavar="DIR|HUB_ID|FILE.gguf", type=not_empty, nargs="+", required=True, help=models)
    shared = "of all of them (default: the last model's)"
    model.add_argument("--tokenizer", metavar="DIR|HUB_ID|FILE.gguf", type=not_empty, help=shared)
    trained = "JSON: model as given -> tokens it was trained on; without it there is no compute axis"
    model.add_argument("--train-tokens", metavar="FILE", type=not_empty, help=trained)
    text = parser.group("text")
    kinds = ".txt, .jsonl, .jsonl.gz or .parquet files, directories, or one data set id NAME[:CONFIG][@SPLIT]"
    text.add_argument("--data", metavar="FILE|DIR|DATASET", type=not_empty, nargs="+", required=True, help=kinds)
    text.add_argument("--text-field", metavar="NAME", default="text", help="the field of a record with its text")
    text.add_argument("--tokens", metavar="N|all", type=tokens_or_all, default="all", help="tokens that count")
    window = "window length in tokens (default: the last model's)"
    text.add_argument("--context", metavar="N", type=at_least(2), help=window)
    text.add_argument("--seed", metavar="N", type=at_least(0), default=0, help="of the choice of documents")
    how = parser.group("precision and device")
    how.add_argument("--dtype", choices=[*DTYPES, "auto"], default="float32", help="the models'; auto: as stored")
    how.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: cuda where there is one")
    how.add_argument("--batch-size", metavar="N", type=at_least(1), default=8, help="windows per batch")
    output = parser.group("output")
    output.add_argument("--out", metavar="PATH", type=not_empty, required=True, help="the table to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write the table."""
    check_writable(arguments.out, "--out")
    if len(arguments.model) < 2:
        raise InputError(f"--model: a family needs at least two models, got {len(arguments.model)}")
    trained = _train_tokens(arguments.train_tokens)
    unknown = sorted(set(trained) - set(arguments.model))
    if unknown:
        raise InputError(f"--train-tokens: {unknown[0]!r} is none of the models")
    device = pick_device(arguments.device)
    tokenizer = load_tokenizer(ModelNames(arguments.model[-1], arguments.tokenizer))
    documents = load_documents(arguments.data, text_field=arguments.text_field, seed=arguments.seed)
    members: list[Member] = []
    context = arguments.context
    with showing() as say:
        for name in arguments.model:
            model = load_model(ModelNames(name), device, arguments.dtype).model
            with progress_bar() as progress:
                found = measure_losses(
                    model,
                    tokenizer,
                    documents,
                    tokens=arguments.tokens,
                    context=context,
                    seed=arguments.seed,
                    batch_size=arguments.batch_size,
                    progress=progress,
                )
            if context is not None and found.context != context:
                raise InputError(f"--context: {name} has windows of {found.context} tokens, the others {context}")
            context = found.context
            members.append(make_member(label(name), model, found, trained.get(name)))
            say(f"{name}: {readable(members[-1].parameters)} parameters, {members[-1].loss:.4f} nats per token\n")
        make_family(members, found.ids, found.tokens, found.context, len(tokenizer)).write(arguments.out)
    return 0


def label(name: str) -> str:
    """A directory's own name, and its parent's where that says only "model"; a hub id as it is."""
    if not os.path.isdir(name):
        return name
    path = Path(os.path.abspath(name))  # a link's own name is the one that was given
    return path.parent.name if path.name == "model" else path.name


def _train_tokens(path: str | None) -> dict[str, int]:
    if path is None:
        return {}
    try:
        found = read_json(path)
        if not isinstance(found, dict) or not found or not all(isinstance(n, int) and n > 0 for n in found.values()):
            raise ValueError("need an object from model to a positive number of tokens")
    except (OSError, ValueError) as error:
        raise InputError(f"--train-tokens: cannot read {path}: {first_line(error)}") from error
    return found
