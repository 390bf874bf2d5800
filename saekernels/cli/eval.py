"""`saekernels eval`: what it costs to splice SAEs into a language model."""

from __future__ import annotations

import argparse
import os
from typing import Any

from saekernels.eval import Report, evaluate, load_documents
from saekernels.eval.errors import InputError
from saekernels.eval.files import check_writable, write_whole
from saekernels.eval.html import page
from saekernels.eval.plots import require_matplotlib
from saekernels.eval.runs import passes
from saekernels.eval.table import print_report

from .arguments import at_least, site_and_path, tokens_or_all
from .inputs import DTYPES, load_model, load_saes, load_tokenizer, pick_device
from .progress import progress_bar, say_finished

BOS = {"auto": None, "always": True, "never": False}
EXAMPLE_NAME = "saekernels example"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="splice SAEs into a language model and report what it costs",
        description="Splice SAEs into a language model, each site alone and all together, and report the loss against "
        "the clean model, zero and mean ablation. Without --model, --sae and --data: the bundled example.",
    )
    source = parser.add_argument_group("what is evaluated")
    source.add_argument("--model", metavar="DIR|HUB_ID", help="a transformers causal LM")
    source.add_argument("--tokenizer", metavar="DIR|HUB_ID", help="its tokenizer, if it lies elsewhere")
    where = "an SAE checkpoint and its site: module, module@input or module@module (transcoder)"
    source.add_argument("--sae", metavar="SITE=PATH", type=site_and_path, nargs="+", action="extend", help=where)
    kinds = ".txt, .jsonl, .jsonl.gz or .parquet files, directories, or one data set id NAME[:CONFIG][@SPLIT]"
    source.add_argument("--data", metavar="FILE|DIR|DATASET", nargs="+", action="extend", help=kinds)
    source.add_argument("--text-field", metavar="NAME", default="text", help="the field of a record with its text")
    source.add_argument("--domain-field", metavar="NAME", help='the field with its domain ("domain", else file name)')
    how = parser.add_argument_group("how")
    how.add_argument("--tokens", metavar="N|all", type=tokens_or_all, default=50_000, help="tokens that count")
    how.add_argument("--context", metavar="N", type=at_least(2), help="window length (the model's, at most 2048)")
    how.add_argument("--bos", choices=BOS, default="auto", help="BOS before each window; auto: the tokenizer's habit")
    how.add_argument("--batch-size", metavar="N", type=at_least(1), default=8, help="windows per batch")
    how.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: cuda where there is one")
    how.add_argument("--dtype", choices=[*DTYPES, "auto"], default="float32", help="the model's; auto: as stored")
    how.add_argument("--sae-dtype", choices=list(DTYPES), default="float32", help="the SAEs'")
    how.add_argument("--seed", metavar="N", type=at_least(0), default=0, help="for documents and bootstrap")
    how.add_argument("--bootstrap", metavar="N", type=at_least(0), default=2000, help="replicates; 0: no intervals")
    how.add_argument("--no-reuse", action="store_true", help="compute layers before a run's first site every time")
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="PATH", help="write the report as JSON")
    output.add_argument("--html", metavar="PATH", help="write the report as one HTML page")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, write the files, print the table."""
    _check_outputs(arguments)
    _fill_from_example(arguments)
    device = pick_device(arguments.device)
    documents = load_documents(
        arguments.data, text_field=arguments.text_field, domain_field=arguments.domain_field, seed=arguments.seed
    )
    model = load_model(arguments.model, device, arguments.dtype)
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.model)
    saes = load_saes(arguments.sae, device, arguments.sae_dtype)
    with progress_bar(passes(len(saes))) as progress:
        report = evaluate(
            model,
            tokenizer,
            saes,
            documents,
            tokens=arguments.tokens,
            batch_size=arguments.batch_size,
            context=arguments.context,
            bootstrap=arguments.bootstrap,
            seed=arguments.seed,
            bos=BOS[arguments.bos],
            model_name=arguments.model_name,
            reuse_layers=not arguments.no_reuse,
            progress=progress,
        )
    _write(report, arguments)
    say_finished(report.tokens, report.run["passes"], report.run["seconds"])
    print_report(report)
    return 0


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Before the hours of work: can the results be written at all?"""
    if arguments.json and arguments.html and os.path.realpath(arguments.json) == os.path.realpath(arguments.html):
        raise InputError(f"--json and --html: both are {arguments.json}")
    for path in (arguments.json, arguments.html):
        if path:
            check_writable(path)
    if arguments.html:
        require_matplotlib()


def _fill_from_example(arguments: argparse.Namespace) -> None:
    """What is not given comes from the bundled example; a model of one's own needs its own SAEs and data."""
    if arguments.model and not (arguments.sae and arguments.data):
        raise InputError("--model needs --sae SITE=PATH and --data as well")
    arguments.model_name = arguments.model or EXAMPLE_NAME
    if arguments.model:
        return
    from saekernels import example

    if not (example.MODEL_DIR.is_dir() and example.SAE_DIRS and example.EVAL_DATA.is_file()):
        raise InputError(f"the bundled example is not in {example.ROOT}; give --model, --sae and --data")
    arguments.model = str(example.MODEL_DIR)
    arguments.sae = arguments.sae or [(site, str(path)) for site, path in example.SAE_DIRS.items()]
    arguments.data = arguments.data or [str(example.EVAL_DATA)]


def _write(report: Report, arguments: argparse.Namespace) -> None:
    text = page(report) if arguments.html else None
    if arguments.json:
        report.write_json(arguments.json)
    if text is not None:
        write_whole(arguments.html, text)
