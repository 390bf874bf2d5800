"""One rank of tests/adapters/steps/test_wrapped.py: sparsify's Trainer on several processes, accelerated and not.

With DDP it names a GPU for every rank, so that it does not run on the CPU: here it is given a DDP that hears of none.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import sparsify.trainer
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import ranks
import saekernels as sk
from sparsify_training import sparsify_trainer

STEPS = 15


def pair(folder: Path, apart: bool) -> Any:
    """Two trainers alike, the second accelerated, with the losses that they will have."""
    found = [sparsify_trainer(folder, "adam", STEPS, apart=apart) for _ in range(2)]
    sk.accelerate(found[1][0])
    return found


def compared(folder: Path, apart: bool) -> dict[str, Any]:
    """How far the accelerated run is from the tool's own."""
    (theirs, want), (ours, found) = pair(folder, apart)
    for trainer in (theirs, ours):
        trainer.fit()
    (name,) = ours.saes
    weights, others = ([*one.saes[name].parameters()] for one in (ours, theirs))
    return {
        "layer": name,
        "steps": [len(want), sk.step_counts(ours).taken],
        "auxk": max(one[1] for one in want) > 0,
        "loss": max(abs(a - b) / max(a, 1e-3) for one, other in zip(want, found, strict=True)
                    for a, b in zip(one, other, strict=True)),
        "weights": max(float((a - b).abs().max()) for a, b in zip(weights, others, strict=True)),
        "fired": torch.equal(ours.num_tokens_since_fired[name], theirs.num_tokens_since_fired[name]),
        "bits": [float(sum(value.double().sum().detach() for value in weights))],
    }  # fmt: skip


def refused(folder: Path) -> list[str]:
    """What the tool's own distributed run on the CPU ends in, accelerated or not."""
    messages = []
    for trainer, _ in pair(folder, apart=False):
        try:
            trainer.fit()
        except ValueError as error:
            messages.append(str(error)[:62])
    return messages


def without_device(module: Any, device_ids: list[int]) -> DistributedDataParallel:
    assert device_ids == [distributed.get_rank()]
    return DistributedDataParallel(module)


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made, contextlib.redirect_stdout(sys.stderr):
        told["refused"] = refused(Path(made))
        told["apart"] = compared(Path(made), apart=True)
        sparsify.trainer.DDP = without_device
        told["DDP"] = compared(Path(made), apart=False)
    every: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, told)
    if distributed.get_rank() == 0:
        sys.stdout.write(json.dumps(every) + "\n")
        sys.stdout.flush()
    ranks.leave()
