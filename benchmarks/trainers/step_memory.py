"""What a training step of SAELens needs beyond weights and gradients, plain and accelerated.

    python benchmarks/trainers/step_memory.py  # BatchTopK at (1024, 768, 24576, 32)
    python benchmarks/trainers/step_memory.py --classes batch_topk,jumprelu --shape 2048,768,24576,32

Peak resident memory of forward, statistics and backward, less what the gradients take, which there are none of before;
of the second step, late in training, without dead latents. Neither the optimizer nor its moments are part of it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import Any

import torch

import saekernels as sk
from peers_trainers import late
from saekernels.bench.cpu.record import now
from saekernels.bench.measure import machine, memory, trainers
from saekernels.cli.commands.bench import shape
from saekernels.cli.options.arguments import Parser, names_of, not_empty
from saekernels.files.atomic import write_whole
from saekernels.files.checked import check_writable


def main(argv: list[str]) -> list[dict[str, Any]]:
    given = _parser().parse_args(argv)
    if given.json:
        check_writable(given.json, "--json")
    record = {
        "date": now(),
        **machine.commit(),
        "versions": machine.versions(),
        "machine": machine.cpu(),
        "memory_method": memory.method(),
        "command": shlex.join(["python", "benchmarks/trainers/step_memory.py", *argv]),
    }
    rows = []
    for kind in given.classes:
        plain, ours = (beyond(kind, given, fast) for fast in (False, True))
        rows.append({"class": kind, "shape": given.shape.sizes(), "plain_mib": plain, "accelerated_mib": ours})
        print(f"{kind} {given.shape}: plain {plain:.0f} MiB, accelerated {ours:.0f} MiB", flush=True)
    if given.json:
        write_whole(given.json, (json.dumps({**record, "rows": rows}, indent=1) + "\n").encode())
    return rows


def beyond(kind: str, given: argparse.Namespace, fast: bool) -> float:
    """MiB of the second step."""
    torch.manual_seed(0)
    tokens, width, latents, k = given.shape
    sae = trainers.saelens_sae(kind, width, latents, k)
    rows = late(sae, tokens)
    trainer = trainers.saelens_trainer(sae, iter(()), batch=tokens, steps=10, lr=1e-3)
    if fast:
        sk.accelerate(trainer)

    def step() -> None:
        sae.zero_grad()
        out = trainer._train_step(sae=sae, sae_in=rows)
        del out

    # Its optimizer's moments would be made in the first step: they are no part of it.
    trainer.optimizer.step = lambda *given: None
    trainer.optimizer.zero_grad = lambda *given: None
    step()
    sae.zero_grad()
    peak = memory.peak_of(step)[1]
    if peak is None:
        raise SystemExit(f"step_memory.py: error: {memory.method()}")
    gradients = sum(one.grad.nbytes for one in sae.parameters() if one.grad is not None)
    return peak - gradients / memory.MIB


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    group = parser.group("what is measured")
    kinds = f"of {', '.join(trainers.CLASSES)}"
    group.add_argument(
        "--classes", metavar="NAME,...", type=names_of(trainers.CLASSES), default=("batch_topk",), help=kinds
    )
    group.add_argument("--shape", metavar="T,d,F,k", type=shape, default=shape("1024,768,24576,32"), help="of a step")
    group.add_argument("--json", metavar="PATH", type=not_empty, help="write the figures")
    parser.set_defaults(command="step_memory")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
