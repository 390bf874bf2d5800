"""`saekernels eval --compat PEER`: another tool's metrics by its own formulas; `--format saebench` writes its files."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saekernels.cli.options.output import shown, write_json
from saekernels.cli.options.source import BOS, Source
from saekernels.display.numbers import short_sites
from saekernels.display.tables import text_table
from saekernels.errors import InputError
from saekernels.eval.compat import PEERS, PeerMetrics, core_output, peer_metrics
from saekernels.eval.compat.packing import packed
from saekernels.eval.compat.saebench import result_name
from saekernels.eval.text.windows import context_of
from saekernels.files.checked import check_writable, make_folder, write_whole

_DEFAULT_CONTEXT = 128


def add_options(extras: Any) -> None:
    """--compat and --format."""
    peers = "instead of our report, the metrics of another tool by its own formulas, on windows packed as it does"
    extras.add_argument("--compat", choices=PEERS, help=peers)
    formats = "of the output, with --compat saebench: SAEBench Core results in the directory given by --json"
    extras.add_argument("--format", choices=["saebench"], help=formats)


def check_options(arguments: argparse.Namespace) -> None:
    """Before the work: do the options fit together, and can the output be written?"""
    if arguments.format and not arguments.compat:
        arguments.compat = arguments.format
    if arguments.format and arguments.compat != arguments.format:
        raise InputError(f"--format {arguments.format}: needs --compat {arguments.format}, got {arguments.compat}")
    if not arguments.compat:
        return
    options = ("html", "checkpoint", "tasks", "edit", "control", "breadth", "reuse", "leave-first", "leave-norm")
    for option in options:
        if getattr(arguments, option.replace("-", "_")) not in (None, [], 0):
            raise InputError(f"--{option}: not with --compat, whose metrics are another tool's")
    if arguments.format and not arguments.json:
        raise InputError("--format saebench: needs --json DIR, the directory for its files")
    if arguments.format:
        if os.path.isfile(arguments.json):
            raise InputError(f"--json: {arguments.json} is a file; --format saebench needs a directory for its files")
        check_writable(make_folder(arguments.json, "--json") / "x", "--json")
    elif arguments.json:
        check_writable(arguments.json, "--json")


def run_compat(arguments: argparse.Namespace, source: Source) -> int:
    """Measure, print, write."""
    tokenizer = source.tokenizer
    context = context_of(source.model, tokenizer, arguments.context, _DEFAULT_CONTEXT)
    bos = tokenizer.bos_token_id if BOS[arguments.bos] is not False else None
    size = arguments.batch_size
    wanted = None if arguments.tokens is None else math.ceil(arguments.tokens / (size * context))
    texts = (document.text for document in source.documents)
    batches = list(itertools.islice(packed(texts, tokenizer, context, size, bos), wanted))
    if not batches:
        raise InputError(
            f"data: less than one batch of {size} windows of {context} tokens; see --batch-size, --context"
        )
    special = _special(tokenizer)
    pad = tokenizer.pad_token_id
    found = peer_metrics(arguments.compat, source.model, source.saes, batches, ignore=special, pad=pad)
    with shown(source.told() + _text(found, len(batches) * size * context)):
        _write(arguments, source, found, context, size, len(batches))
    return 0


def _write(
    arguments: argparse.Namespace, source: Source, found: Sequence[PeerMetrics], context: int, size: int, batches: int
) -> None:
    if arguments.format:
        for one in found:
            _write_core(arguments, source, one, context, size, batches)
    elif arguments.json:
        result = {
            "compat": arguments.compat,
            "model": arguments.model_name,
            **source.facts,
            "tokens": batches * size * context,
            "context": context,
            "results": [{"site": one.entry, "metrics": one.metrics} for one in found],
        }
        write_json(arguments.json, _finite(result))


def _special(tokenizer: Any) -> list[int]:
    """What SAELens calls special: ids that have an attribute of their own, not further added tokens."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id")
    return sorted({value for name in names if isinstance(value := getattr(tokenizer, name, None), int)})


def _write_core(
    arguments: argparse.Namespace, source: Source, found: PeerMetrics, context: int, size: int, batches: int
) -> None:
    release = os.path.basename(os.path.normpath(arguments.model)) or "model"
    output = core_output(
        found,
        source.saes[found.entry],
        model_name=arguments.model_name,
        release=release,
        sae_id=found.entry,
        dataset=" ".join(os.path.basename(name) for name in arguments.data),
        context=context,
        batch_size=size,
        batches=batches,
        dtype=arguments.dtype,
        keeps_special=True,
    )
    path = Path(arguments.json) / result_name(release, found.entry)
    write_whole(path, json.dumps(output, indent=2, allow_nan=False) + "\n")


def _text(found: Sequence[PeerMetrics], tokens: int) -> str:
    _, names = short_sites([one.entry for one in found])
    rows = [
        [name, *(f"{one.metrics[group][name]:.5g}" for one in found)]
        for group, named in found[0].metrics.items()
        for name in named
    ]
    return text_table([f"{found[0].peer}, {tokens:,} tokens", *names.values()], rows)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
