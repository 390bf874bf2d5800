"""`saekernels eval`: what it costs to splice SAEs into a language model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from saekernels.backends import registry
from saekernels.eval import Report, evaluate, load_documents
from saekernels.eval.documents import files_of
from saekernels.eval.errors import InputError
from saekernels.eval.files import check_writable, same_file, write_whole
from saekernels.eval.html import page
from saekernels.eval.plan import BASELINES
from saekernels.eval.plots import require_matplotlib
from saekernels.eval.table import as_text

from .arguments import at_least, names_of, not_empty, site_and_path, tokens_or_all
from .inputs import DTYPES, load_model, load_saes, load_tokenizer, pick_device
from .output import OutputError, arriving, show
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
    source.add_argument("--model", metavar="DIR|HUB_ID", type=not_empty, help="a transformers causal LM")
    source.add_argument("--tokenizer", metavar="DIR|HUB_ID", type=not_empty, help="its tokenizer, if elsewhere")
    where = "an SAE checkpoint and its site: module, module@input or module@module (transcoder); SITE#NAME for several of one"
    source.add_argument("--sae", metavar="SITE=PATH", type=site_and_path, nargs="+", action="extend", help=where)
    kinds = ".txt, .jsonl, .jsonl.gz or .parquet files, directories, or one data set id NAME[:CONFIG][@SPLIT]"
    source.add_argument("--data", metavar="FILE|DIR|DATASET", type=not_empty, nargs="+", action="extend", help=kinds)
    source.add_argument("--text-field", metavar="NAME", default="text", help="the field of a record with its text")
    source.add_argument("--domain-field", metavar="NAME", help='the field with its domain ("domain", else file name)')
    labels = "further fields of a record to report by"
    source.add_argument("--label-field", metavar="NAME", nargs="+", action="extend", default=[], help=labels)
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
    kinds = f"what to compare with, of {', '.join(BASELINES)}, comma-separated (all); none: nothing"
    how.add_argument("--baselines", metavar="KINDS", type=names_of(BASELINES), default=BASELINES, help=kinds)
    how.add_argument("--no-cumulative", action="store_true", help="leave out the splices of the first l sites")
    how.add_argument("--no-reuse", action="store_true", help="compute layers before a run's first site every time")
    resume = "keep the run's state here; the same command goes on where a killed one stopped"
    how.add_argument("--checkpoint", metavar="DIR", type=not_empty, help=resume)
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="PATH", type=not_empty, help="write the report as JSON")
    output.add_argument("--html", metavar="PATH", type=not_empty, help="write the report as one HTML page")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table, write the files."""
    _fill_from_example(arguments)
    _check_outputs(arguments)
    device = pick_device(arguments.device)
    _say_if_slow(device)
    documents = load_documents(
        arguments.data,
        text_field=arguments.text_field,
        domain_field=arguments.domain_field,
        label_fields=arguments.label_field,
        seed=arguments.seed,
    )
    model = load_model(arguments.model, device, arguments.dtype)
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.model)
    saes = load_saes(arguments.sae, device, arguments.sae_dtype)
    with progress_bar() as progress:
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
            baselines=arguments.baselines,
            cumulative=not arguments.no_cumulative,
            reuse_layers=not arguments.no_reuse,
            checkpoint=arguments.checkpoint,
            progress=progress,
        )
    say_finished(report.tokens, report.run["passes"], report.run["seconds"])
    unseen: Exception | None = None
    try:
        with arriving():  # rich writes to stdout, though nothing, also when it only renders
            show(as_text(report))
    except (OutputError, BrokenPipeError) as error:
        unseen = error  # the files are then all that stays of hours of work
    _write(report, arguments)
    if unseen is not None:
        raise unseen
    return 0


def _say_if_slow(device: torch.device) -> None:
    """A misspelt SAEKERNELS_SIMD must not cost hours in silence."""
    reason = registry.load("cpu").available() or ""
    if device.type == "cpu" and registry.ENVIRONMENT_CHOICE == "auto" and reason.startswith("SAEKERNELS_SIMD"):
        print(f"saekernels eval: the slower backend 'reference' serves instead of 'cpu': {reason}", file=sys.stderr)


def _fill_from_example(arguments: argparse.Namespace) -> None:
    """What is not given comes from the bundled example; a model of one's own needs its own SAEs and data."""
    if arguments.model and not (arguments.sae and arguments.data):
        raise InputError("--model needs --sae SITE=PATH and --data as well")
    if arguments.model:
        arguments.model_name = arguments.model
        return
    from saekernels import example

    if not (example.MODEL_DIR.is_dir() and example.SAE_DIRS and example.EVAL_DATA.is_file()):
        raise InputError(f"the bundled example is not in {example.ROOT}; give --model, --sae and --data")
    arguments.model = str(example.MODEL_DIR)
    changed = arguments.sae or arguments.data or arguments.tokenizer
    arguments.model_name = arguments.model if changed else EXAMPLE_NAME
    arguments.sae = arguments.sae or [(site, str(path)) for site, path in example.SAE_DIRS.items()]
    arguments.data = arguments.data or [str(example.EVAL_DATA)]


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Before the hours of work: can the results be written at all, and over nothing that is read?"""
    outputs = {"--json": arguments.json, "--html": arguments.html}
    given = {option: path for option, path in outputs.items() if path}
    for option, path in given.items():
        check_writable(path)
        for file in (file for source in arguments.data for file in files_of(Path(source))):
            if same_file(path, file):
                raise InputError(f"{option}: {path} is the file {file} of --data; it would be overwritten")
    if len(given) == 2 and same_file(arguments.json, arguments.html):
        raise InputError(f"--json and --html: both are {arguments.json}")
    if arguments.html:
        require_matplotlib()


def _write(report: Report, arguments: argparse.Namespace) -> None:
    """Both files, once both are rendered; a place that fails does not keep the other from being written."""
    texts = {arguments.json: report.to_json()} if arguments.json else {}
    if arguments.html:
        texts[arguments.html] = page(report)
    written: list[str] = []
    failures: list[str] = []
    try:
        for path, text in texts.items():
            try:
                write_whole(path, text)
                written.append(path)
            except InputError as error:
                failures.append(str(error))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_written(written)) from None
    if failures:
        raise InputError("; ".join([*failures, _written(written)]))


def _written(paths: list[str]) -> str:
    return f"{' and '.join(paths) or 'nothing'} was written"
