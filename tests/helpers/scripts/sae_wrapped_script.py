"""One rank of tests/sae/test_wrapped.py: an SAE trained in DDP, FSDP1 and FSDP2 against one process with all tokens.

Prints, by kind of SAE and way, how far parameters are after two steps, of how far they have moved.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import ranks
import saekernels as sk

WAYS: dict[str, Any] = {
    # A threshold gets no gradient, which DDP has to be told.
    "DDP": functools.partial(DistributedDataParallel, find_unused_parameters=True),
    "FSDP1": functools.partial(FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=True),
    "FSDP2": fully_shard,
}
KINDS = {"topk": sk.TopK(4), "jumprelu": sk.JumpReLU()}


def made(kind: str) -> sk.SAE:
    torch.manual_seed(1)
    return sk.SAE(8, 32, KINDS[kind])


def train(module: nn.Module, x: Tensor, share: float) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        ((module(x) - x).square().sum() * share).backward()
        optimizer.step()


def parameters(module: nn.Module) -> list[Tensor]:
    whole = FullyShardedDataParallel.summon_full_params(module) if isinstance(
        module, FullyShardedDataParallel) else contextlib.nullcontext()  # fmt: skip
    with whole:
        full = [one.full_tensor() if hasattr(one, "full_tensor") else one for one in module.parameters()]
        return [one.detach().clone() for one in full]


def distances(kind: str, way: str) -> tuple[float, float]:
    """(from the parameters of one process, from where they began): the largest of each."""
    torch.manual_seed(2)
    x, rank, world = torch.randn(12, 8), distributed.get_rank(), distributed.get_world_size()
    alone = made(kind)
    train(alone, x, 1 / world)  # a wrapper takes the mean of the gradients of its ranks
    wrapped = WAYS[way](made(kind))
    train(wrapped, x.chunk(world)[rank], 1.0)
    pairs = list(zip(parameters(wrapped), alone.parameters(), made(kind).parameters(), strict=True))
    return (
        max(float((got - want).abs().max()) for got, want, _ in pairs),
        max(float((got - began).abs().max()) for got, _, began in pairs),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found = {f"{kind} {way}": distances(kind, way) for kind in KINDS for way in WAYS}
    if distributed.get_rank() == 0:
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
    ranks.leave()
