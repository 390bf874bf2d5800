"""What a command works on: options for model, SAEs and text, the bundled example in place of what is not given."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from saekernels.cli.options import checkpoint
from saekernels.cli.options.arguments import Parser, at_least, not_empty, site_and_path, tokens_or_all
from saekernels.cli.options.inputs import (
    DEVICE_MAPS,
    DTYPES,
    device_of_site,
    load_saes,
    pick_device,
    read_device_map,
)
from saekernels.cli.options.models import ModelNames, load_model, load_tokenizer
from saekernels.errors import InputError
from saekernels.eval import Document, load_documents
from saekernels.eval.sums.bootstrap import MOST_REPLICATES
from saekernels.eval.text.documents import check_domains

BOS = {"auto": None, "always": True, "never": False}
EXAMPLE_NAME = "saekernels example"
EXAMPLE = " (default: the bundled example's)"


@dataclass(frozen=True)
class Source:
    """A loaded model with its tokenizer, SAEs and text, all of them on one device.

    facts: how the model's weights came about (`LoadedModel`).
    """

    model: Any
    tokenizer: Any
    saes: dict[str, Any]
    documents: Iterable[Document]
    device: torch.device
    facts: dict[str, str] = field(default_factory=dict)

    def told(self) -> str:
        """The facts as a line, for tables that say nothing else of the model; "" without any."""
        return "; ".join(f"{name}: {what}" for name, what in self.facts.items()) + "\n" * bool(self.facts)


def add_source(parser: Parser) -> None:
    """The options that every measurement on running text has: model and SAEs, text, precision and device."""
    add_model(parser)
    add_text(parser)
    add_precision(parser)


def add_model(parser: Parser) -> None:
    """The options that say which model and which SAEs."""
    model = parser.group("model")
    kinds = "a causal LM of transformers, or a GGUF file (dequantised)"
    model.add_argument("--model", metavar="DIR|HUB_ID|FILE.gguf", type=not_empty, help=kinds + EXAMPLE)
    habit = "its tokenizer, if elsewhere (default: as --model)"
    model.add_argument("--tokenizer", metavar="DIR|HUB_ID|FILE.gguf", type=not_empty, help=habit)
    revision = "branch, tag or commit of the model's repository on the hub, and of its tokenizer there (default: main)"
    model.add_argument("--revision", metavar="NAME", type=not_empty, help=revision)
    adapter = "a PEFT adapter over the model; sites keep the model's own names"
    model.add_argument("--adapter", metavar="DIR|HUB_ID", type=not_empty, help=adapter)
    where = "an SAE checkpoint and its site: module, module@input, module@module (transcoder) or 'READ -> WRITE'; "
    where += "SITE#NAME=PATH for several of one site; PATH alone where its files say the site"
    where += EXAMPLE
    model.add_argument("--sae", metavar="[SITE=]PATH", type=site_and_path, nargs="+", action="extend", help=where)
    trust = "run the Python code that the model's or tokenizer's checkpoint brings; without it such a one is refused"
    model.add_argument("--trust-remote-code", action="store_true", help=trust)
    checkpoint.add_options(parser, checkpoint.SAES)


def add_text(parser: Parser) -> None:
    """The options that say which text, and how much of it."""
    text = parser.group("text")
    kinds = ".txt, .jsonl, .jsonl.gz or .parquet files, directories, or one data set id NAME[:CONFIG][@SPLIT]" + EXAMPLE
    text.add_argument("--data", metavar="FILE|DIR|DATASET", type=not_empty, nargs="+", action="extend", help=kinds)
    text.add_argument("--text-field", metavar="NAME", default="text", help="the field of a record with its text")
    domain = "the field with its domain (default: domain, else the file's name)"
    text.add_argument("--domain-field", metavar="NAME", help=domain)
    labels = "further fields of a record to report by"
    text.add_argument("--label-field", metavar="NAME", nargs="+", action="extend", default=[], help=labels)
    text.add_argument("--tokens", metavar="N|all", type=tokens_or_all, default=50_000, help="tokens that count")
    window = "window length in tokens (default: the model's, at most 2048)"
    text.add_argument("--context", metavar="N", type=at_least(2), help=window)
    add_bos_and_seed(text)


def add_bos_and_seed(text: argparse._ArgumentGroup, seeded: str = "of documents and bootstrap") -> None:
    """What texts of any kind need beside themselves; seeded: what the seed is of."""
    text.add_argument("--bos", choices=BOS, default="auto", help="BOS before each window; auto: the tokenizer's habit")
    text.add_argument("--seed", metavar="N", type=at_least(0), default=0, help=seeded)


def add_precision(parser: Parser, batch: str = "windows") -> None:
    """The options that say in which dtypes, where, and how much at a time; batch: of what."""
    how = parser.group("precision and device")
    how.add_argument("--dtype", choices=[*DTYPES, "auto"], default="float32", help="the model's; auto: as stored")
    how.add_argument("--sae-dtype", choices=list(DTYPES), default="float32", help="the SAEs'")
    how.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: cuda where there is one")
    places = f"spread the model over devices, each SAE where its site is: {', '.join(DEVICE_MAPS)}, or a JSON file"
    how.add_argument("--device-map", metavar="MAP", type=not_empty, help=places)
    how.add_argument("--batch-size", metavar="N", type=at_least(1), default=8, help=f"{batch} per batch")


def add_bootstrap(parser: Parser) -> None:
    """--bootstrap of the studies."""
    replicates = "bootstrap replicates for 95 %% intervals; 0: none"
    group = parser.group("baselines and intervals")
    group.add_argument("--bootstrap", metavar="N", type=at_least(0, MOST_REPLICATES), default=1000, help=replicates)


def load_source(
    arguments: argparse.Namespace,
    device: torch.device | None = None,
    group: Any = None,
    read: bool = True,
    domains: Iterable[str] = (),
) -> Source:
    """Load what the options name, onto `device` in place of theirs.

    group: the processes over which each SAE is spread, if it is. read: the text, too, and not none instead. domains:
    which the text has to hold two documents of, where that can be seen before the model is loaded.
    Raises InputError for what cannot be loaded.
    """
    device = device or pick_device(arguments.device)
    told = checkpoint.given(arguments, checkpoint.SAES)
    documents: Iterable[Document] = ()
    if read:
        documents = load_documents(
            arguments.data,
            text_field=arguments.text_field,
            domain_field=arguments.domain_field,
            label_fields=arguments.label_field,
            seed=arguments.seed,
        )
        if isinstance(documents, Sequence):
            check_domains([document.domain for document in documents], domains)
    device_map = read_device_map(getattr(arguments, "device_map", None))
    names = ModelNames.of(arguments)
    loaded = load_model(names, device, arguments.dtype, device_map)
    model, tokenizer = loaded.model, load_tokenizer(names)

    def device_at(site: str) -> torch.device:
        return device if device_map is None else device_of_site(model, site, device)

    saes = load_saes(arguments.sae, model, device_at, arguments.sae_dtype, told, group)
    return Source(model, tokenizer, saes, documents, device, loaded.facts)


def fill_from_example(arguments: argparse.Namespace, texts: str | None = "data") -> bool:
    """What is not given comes from the bundled example; a model of one's own needs its own SAEs and texts.

    texts: the option that names the texts; None for a command that has them already. Returns whether all of it is the
    example's.
    """
    given = texts is None or getattr(arguments, texts)
    if arguments.model and not (arguments.sae and given):
        also = "" if texts is None else f" and --{texts}"
        raise InputError(f"--model needs --sae SITE=PATH{also} as well")
    if arguments.model:
        arguments.model_name = arguments.model
        return False
    if not arguments.sae and (lone := checkpoint.asked(arguments, checkpoint.SAES)):
        raise InputError(f"{lone[0]}: it is about the checkpoints of --sae; give those as well")
    from saekernels import example

    if example.MISSING:
        also = "--model and --sae" if texts is None else f"--model, --sae and --{texts}"
        raise InputError(f"{example.MISSING}; or give {also}")
    bundled = [example.EVAL_DATA] if texts == "data" else example.LABELLED
    arguments.model = str(example.MODEL_DIR)
    changed = arguments.sae or (texts and given) or arguments.tokenizer or arguments.adapter
    arguments.model_name = arguments.model if changed else EXAMPLE_NAME
    arguments.sae = arguments.sae or [(site, str(path)) for site, path in example.SAE_DIRS.items()]
    if texts is not None:
        setattr(arguments, texts, given or [str(path) for path in bundled])
    return not changed
