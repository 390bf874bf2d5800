"""What the three `train_with_*.py` share: options, text, a site's activations, and the verdict on what was trained."""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels as sk
from saekernels import example
from saekernels.cli.options.arguments import at_least, positive


def arguments(description: str | None, tool: str) -> argparse.Namespace:
    """The options of each."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(example.MODEL_DIR), help="a causal LM of transformers")
    parser.add_argument("--data", default=str(example.EVAL_DATA), help="documents, as of `saekernels eval`")
    parser.add_argument("--site", default="model.layers.2", help="a module whose output is explained")
    parser.add_argument("--documents", type=at_least(1), default=150, help="to train on; the others are held out")
    parser.add_argument("--latents", type=at_least(1), default=5120)
    parser.add_argument("--k", type=at_least(1), default=32, help="active latents per token")
    parser.add_argument("--batch", type=at_least(1), default=1024, help="tokens per step")
    parser.add_argument("--own-steps", type=at_least(3), default=10, help="of the tool's own code, first")
    parser.add_argument("--steps", type=at_least(6), default=200, help="in all, 3 or more of them ours")
    parser.add_argument("--lr", type=positive, default=3e-3)
    parser.add_argument("--eval-tokens", type=at_least(1), default=4_000, help="held-out predictions to evaluate on")
    parser.add_argument("--out", type=Path, default=Path(f"trained_{tool}"), help="a folder, in the tool's own format")
    args = parser.parse_args()
    if args.own_steps > args.steps - 3:
        parser.error(f"--own-steps: got {args.own_steps}, need at most {args.steps - 3}, 3 less than --steps")
    if args.k > args.latents:
        parser.error(f"--k: got {args.k}, need at most {args.latents}, the latents")
    torch.manual_seed(0)
    return args


class Text:
    """A model, and documents: the first so many to train on, the others held out."""

    def __init__(self, args: argparse.Namespace) -> None:
        try:
            self.model: Any = AutoModelForCausalLM.from_pretrained(args.model).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
            documents = list(sk.load_documents([args.data]))
            self.model.get_submodule(args.site)
        except (OSError, ValueError, AttributeError) as error:
            sys.exit(f"error: {str(error).splitlines()[0]}")
        if len(documents) <= args.documents:
            sys.exit(f"error: --documents: got {args.documents} of {len(documents)}, need some that are held out")
        self.seen, self.held_out = documents[: args.documents], documents[args.documents :]

    def ids(self) -> Iterator[Tensor]:
        """[1, S] of each document to train on, S <= 256."""
        for document in self.seen:
            yield self.tokenizer(document.text, truncation=True, max_length=256, return_tensors="pt").input_ids

    @torch.no_grad()
    def activations(self, site: str) -> Tensor:
        """[n, d]: the site's output at every token but each document's first."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            found.append((output if isinstance(output, Tensor) else output[0])[0, 1:])

        handle = self.model.get_submodule(site).register_forward_hook(keep)
        for ids in self.ids():
            self.model(ids)
        handle.remove()
        return torch.cat(found)

    def evaluate(self, site: str, folder: Path, tokens: int) -> None:
        """Print what the model loses with the saved SAE in the site's place."""
        saes = {site: sk.load(folder)}
        report = sk.evaluate(self.model, self.tokenizer, saes, self.held_out, tokens=tokens, baselines=["zero"])
        (row,) = report.sites
        within = "" if row.delta_ce.ci95 is None else " [{:+.4f}, {:+.4f}]".format(*row.delta_ce.ci95)
        print(f"held out: FVU {row.fvu:.4f}, L0 {row.l0:.1f}, ΔCE {row.delta_ce.nats:+.4f} nats{within}")
        print(f"zeros in its place: {row.ce.zero - row.ce.clean:+.4f}")


def batches(x: Tensor, rows: int, starts: list[float]) -> Iterator[Tensor]:
    """[rows, d] of x [n, d] without end; when each was asked for goes into `starts`, in seconds."""
    while True:
        starts.append(time.perf_counter())
        yield x[torch.randint(len(x), (rows,))]


def say_seconds(starts: Sequence[float], own_steps: int, counts: sk.StepCounts) -> None:
    """Print the medians of both kinds of steps; the first of each kind, which lays weights out, is left out."""
    own, ours = starts[1:own_steps], starts[own_steps + 1 :]
    before, after = (statistics.median(b - a for a, b in itertools.pairwise(one)) for one in (own, ours))
    left = "".join(f", {number} left to the tool ({reason})" for reason, number in counts.left.items())
    print(f"seconds per step: {before:.4f} before, {after:.4f} after: {before / after:.2f}x")
    print(f"{own_steps} steps before, then {counts.taken} taken over{left}")
