"""`saekernels eval --clt PATH | --crosscoder PATH | --transcoders DIR`: its options, its checks, its call."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

import torch

from saekernels import example
from saekernels.cli.commands.replacement.crosscoder import load_heads
from saekernels.cli.commands.replacement.text import as_text
from saekernels.cli.options import checkpoint
from saekernels.cli.options.arguments import Parser, not_empty, positive
from saekernels.cli.options.inputs import DTYPES, pick_device
from saekernels.cli.options.leave import leave_keywords
from saekernels.cli.options.output import say, say_finished, show_written, shown, write_json
from saekernels.cli.options.report_files import check_outputs
from saekernels.cli.options.source import BOS, EXAMPLE_NAME, load_source
from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.display.progress import progress_bar
from saekernels.errors import InputError, first_line, missing_extra
from saekernels.eval.passes.plan import BASELINES
from saekernels.eval.report.replacement.page import replacement_page
from saekernels.eval.studies.crosslayer.measure import evaluate_replacement
from saekernels.eval.studies.crosslayer.study import EVERY
from saekernels.files.checked import write_whole
from saekernels.formats import load_cross_layer

_KINDS = {
    "clt": "a cross-layer transcoder",
    "crosscoder": "a crosscoder",
    "transcoders": "transcoders, one for each layer",
}
_OPTIONS = "--clt, --crosscoder and --transcoders"
# Of `eval`: what it asks for of SAEs that are spliced in one by one.
_NOT_HERE: dict[str, Any] = {
    "sae": None,
    "baselines": BASELINES,
    "no_cumulative": False,
    "family": None,
    "tasks": None,
    "breadth": None,
    "reuse": False,
    "control": [],
    "edit": [],
    "keep_error": False,
    "compat": None,
    "format": None,
    "latent_parallel": 1,
    "no_reuse": False,
    "device_map": None,
}


def add_options(parser: Parser) -> None:
    """The options of layers that are replaced together."""
    group = parser.group("layers replaced together")
    clt = "a cross-layer transcoder in place of --sae: all its layers are replaced, jointly and otherwise"
    group.add_argument("--clt", metavar="PATH", type=not_empty, help=clt)
    coder = "the same of a crosscoder: jointly if it is weakly causal, else by codes of clean passes"
    group.add_argument("--crosscoder", metavar="PATH", type=not_empty, help=coder)
    scales = "what each head of a crosscoder multiplies what it reads by (default: as the files say)"
    group.add_argument("--head-scale", metavar="X", type=positive, nargs="+", help=scales)
    folder = "the same of a set of transcoders, one for each layer"
    group.add_argument("--transcoders", metavar="DIR", type=not_empty, help=folder)
    beside = "with any: another one, not a crosscoder, whose joint loss is compared by document"
    group.add_argument("--beside", metavar="PATH", type=not_empty, help=beside)
    sites = "where each layer reads and writes, 'READ -> WRITE' (default: as the files say)"
    group.add_argument("--sites", metavar="SITE", type=not_empty, nargs="+", help=sites)
    domain = "fit maps and select latents on this domain alone, and measure them on every one: three runs for each; "
    domain += "all: on each in turn (default: the domain with most text)"
    group.add_argument("--domain", metavar="NAME", type=not_empty, nargs="+", help=domain)
    sources = "also replace the first layers alone, and switch off the codes of each layer in turn"
    group.add_argument("--sources", action="store_true", help=sources)
    group.add_argument("--no-affine", action="store_true", help="leave out the affine maps")


def asked(arguments: argparse.Namespace) -> bool:
    """Whether layers are to be replaced together. InputError for options that are of the other kind."""
    given = [option for option in _KINDS if getattr(arguments, option)]
    if not given:
        for option in ("beside", "sites", "domain", "sources", "no_affine", "head_scale"):
            if getattr(arguments, option):
                raise InputError(f"--{_spelled(option)}: needs --clt, --crosscoder or --transcoders")
        return False
    if len(given) > 1:
        raise InputError(f"{_OPTIONS}: one is replaced at a time; --beside compares with another")
    if arguments.head_scale and given[0] != "crosscoder":
        raise InputError(f"--head-scale: not with --{given[0]}, which has no heads")
    for option, default in _NOT_HERE.items():
        if getattr(arguments, option) not in (None, default):
            raise InputError(f"--{_spelled(option)}: not with --{given[0]}, whose layers are replaced together")
    return True


def fill(arguments: argparse.Namespace) -> None:
    """Model and text of the bundled example where none are given."""
    if arguments.model and not arguments.data:
        raise InputError("--model needs --data as well")
    if lone := checkpoint.asked(arguments, checkpoint.SAES):
        raise InputError(f"{lone[0]}: it is about the checkpoints of --sae, which are not here")
    if not arguments.data and example.MISSING:
        raise InputError(f"{example.MISSING}; or give --model and --data")
    changed = arguments.model or arguments.data or arguments.adapter
    arguments.model = arguments.model or str(example.MODEL_DIR)
    arguments.model_name = arguments.model if changed else EXAMPLE_NAME
    arguments.data = arguments.data or [str(example.EVAL_DATA)]
    arguments.sae = []


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write."""
    fill(arguments)
    check_outputs(arguments)
    every = arguments.domain == [EVERY]
    if not every and EVERY in (arguments.domain or ()):
        raise InputError(f"--domain: got {' '.join(arguments.domain)}, need {EVERY} alone, or names")
    device = pick_device(arguments.device)
    replacement = _given(arguments, device)
    beside = load_layers("beside", arguments.beside, device, arguments.sae_dtype) if arguments.beside else None
    named = () if every else arguments.domain or ()
    source = load_source(arguments, device, domains=named)
    with progress_bar() as progress:
        found = evaluate_replacement(
            source.model,
            source.tokenizer,
            replacement,
            source.documents,
            sites=arguments.sites,
            beside=beside,
            domain=EVERY if every else arguments.domain,
            affine=not arguments.no_affine,
            sources=arguments.sources,
            tokens=arguments.tokens,
            batch_size=arguments.batch_size,
            context=arguments.context,
            bootstrap=arguments.bootstrap,
            seed=arguments.seed,
            bos=BOS[arguments.bos],
            model_name=arguments.model_name,
            checkpoint=arguments.checkpoint,
            progress=progress,
            before=say,
            **leave_keywords(arguments),
        )
    found["run"] |= {**source.facts, "command": shlex.join(["saekernels", *arguments.argv])}
    say_finished(found["tokens"], found["run"]["passes"], found["run"]["seconds"])
    with shown(source.told() + as_text(found)):
        write_json(arguments.json, found)
        if arguments.html:
            write_whole(arguments.html, replacement_page(found))
    files = ((arguments.html, "open it in a browser"), (arguments.json, "the figures"))
    show_written([*files, (arguments.checkpoint, "the same command goes on from here")])
    return 0


def _given(arguments: argparse.Namespace, device: torch.device) -> Any:
    option = next(option for option in _KINDS if getattr(arguments, option))
    if option == "crosscoder":
        return load_heads(arguments.crosscoder, device, DTYPES[arguments.sae_dtype], arguments.head_scale)
    return load_layers(option, getattr(arguments, option), device, arguments.sae_dtype)


def load_layers(option: str, path: str, device: torch.device, dtype: str) -> Any:
    """The dictionary there. InputError for what cannot be loaded, and for one of another kind than the option says."""
    try:
        found = load_cross_layer(path, device=device, dtype=DTYPES[dtype])
    except ImportError as error:
        raise missing_extra("safetensors", "reading dictionaries of several layers") from error
    except (OSError, ValueError) as error:
        raise InputError(f"--{option} {path}: {first_line(error)}") from error
    kind = "clt" if isinstance(found, CrossLayerTranscoder) else "transcoders"
    if option in _KINDS and kind != option:
        raise InputError(f"--{option} {path}: it holds {_KINDS[kind]}; give --{kind}")
    return found


def _spelled(option: str) -> str:
    return option.replace("_", "-")
