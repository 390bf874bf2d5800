"""One rank of tests/adapters/steps/test_wrapped.py: training SAEs in DDP and FSDP, accelerated and not; prints faults.

Each way is compared with the tool's own SAE wrapped alike, and that with processes that share nothing but the mean of
their gradients.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

import lens_training
import ranks
import saekernels as sk

TOKENS, WIDTH, LATENTS, STEPS = 24, 16, 60, 2
WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": DistributedDataParallel,
    "DDP, gradients as views": functools.partial(DistributedDataParallel, gradient_as_bucket_view=True),
    "FSDP2": fully_shard,
    "FSDP1": functools.partial(FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=True),
}
# When it is accelerated: before there is a process group, before it is wrapped, or the wrapped one.
ORDERS = ("early", "before", "after")
# By the number of processes.
CASES: dict[int, dict[tuple[str, str], tuple[str, ...]]] = {
    2: {
        **{("topk", way): ORDERS for way in WAYS},
        ("batchtopk", "DDP"): ("after",), ("batchtopk", "FSDP2"): ("before",), ("jumprelu, step", "FSDP2"): ("after",),
        ("coder", "DDP"): ("early",), ("coder", "FSDP2"): ("before",),
    },
    3: {("topk", "DDP"): ("after",), ("topk", "FSDP2"): ("before",), ("batchtopk", "DDP"): ("early",)},
}  # fmt: skip
REFUSED = "FSDP does not support non-contiguous parameters yet"


class Step(nn.Module):
    """A step's loss, or the reconstruction."""

    def __init__(self, sae: Any) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x: Tensor, look: bool = False) -> Tensor:
        if isinstance(self.sae, SparseCoder):
            out = self.sae(x, dead_mask=dead())
            return out.sae_out if look else out.fvu + 0.5 * out.auxk_loss + out.multi_topk_fvu / 8
        return self.sae(x) if look else self.sae.training_forward_pass(given(self.sae, x)).loss


def dead() -> Tensor:
    return torch.arange(LATENTS) % 3 == 0


def given(sae: Any, x: Tensor) -> TrainStepInput:
    return TrainStepInput(x, dict.fromkeys(sae.get_coefficients(), 0.7), dead(), 0, False)


def make(name: str) -> Any:
    """The tool's own, with the same weights in every process."""
    if name != "coder":
        return lens_training.pair(name, (TOKENS, WIDTH, LATENTS, 3))[0]
    torch.manual_seed(0)
    coder = SparseCoder(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=3, multi_topk=True))
    coder.encoder.bias.data.add_(1.0)
    return coder


def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(TOKENS, WIDTH) for _ in range(STEPS)]


def part(x: Tensor, rank: int) -> Tensor:
    return x.chunk(distributed.get_world_size())[rank]


def gradients(wrapped: nn.Module) -> dict[str, Tensor]:
    """Whole ones, by the SAE's own names."""
    if isinstance(wrapped, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
            return found(wrapped)
    return found(wrapped)


def found(module: nn.Module) -> dict[str, Tensor]:
    return {
        name.rpartition("sae.")[2]: getattr(one.grad, "full_tensor", one.grad.clone)()
        for name, one in module.named_parameters()
        if one.grad is not None
    }


def trained(wrapped: nn.Module) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """(gradients, loss, reconstruction afterwards) of every step of gradient descent."""
    told, optimizer = [], torch.optim.SGD(wrapped.parameters(), lr=0.01)
    for x in batches():
        mine = part(x, distributed.get_rank())
        optimizer.zero_grad()
        loss = wrapped(mine)
        loss.backward()
        left = gradients(wrapped)
        optimizer.step()
        with torch.no_grad():
            told.append((left, loss.detach(), wrapped(mine, look=True)))
    return told


@functools.cache
def alone(name: str) -> list[dict[str, Tensor]]:
    """The mean gradients of every step of what the ranks' own objects give on their parts, one after the other."""
    saes = [Step(make(name)) for _ in range(distributed.get_world_size())]
    told = []
    for x in batches():
        for rank, sae in enumerate(saes):
            sae.zero_grad()
            sae(part(x, rank)).backward()
        each = [found(sae) for sae in saes]
        mean = {path: torch.stack([one[path] for one in each]).mean(0) for path in each[0]}
        told.append(mean)
        for sae in saes:
            for path, value in sae.sae.named_parameters():
                value.data -= 0.01 * mean[path]
    return told


def differs(ours: Tensor, theirs: Tensor, bound: float) -> bool:
    return ours.shape != theirs.shape or not float((ours - theirs).abs().max()) <= bound * float(theirs.abs().max())


def compared(ours: Any, theirs: Any, own: list[dict[str, Tensor]]) -> list[str]:
    """What is not the same in two training runs."""
    wrong = []
    for step, ((left, loss, out), (want, other, there), mean) in enumerate(zip(ours, theirs, own, strict=True)):
        wrong += [f"step {step}: loss"] if differs(loss, other, 1e-6) else []
        wrong += [f"step {step}: reconstruction"] if differs(out, there, 1e-5) else []
        wrong += [f"step {step}: {set(left) ^ set(want)}"] if set(left) != set(want) else []
        for path, value in want.items():
            wrong += [f"step {step}: {path}"] if differs(left[path], value, 1e-5) else []
            wrong += [f"step {step}: {path}, the tool's own"] if differs(value, mean[path], 1e-5) else []
    return wrong


def case(name: str, way: str, orders: tuple[str, ...], early: Any) -> dict[str, list[str]]:
    """What is wrong in every order."""
    tools, wrong = make(name), {}
    theirs = trained(WAYS[way](Step(tools)))
    for order in orders:
        sae = early if order == "early" else make(name)
        if order == "before":
            sk.accelerate(sae)
        try:
            wrapped = WAYS[way](Step(sae))
        except NotImplementedError as error:
            wrong[order] = [str(error)[: len(REFUSED)]]
            continue
        if order == "after":
            sk.accelerate(wrapped)
        wrong[order] = compared(trained(wrapped), theirs, alone(name))
        if sk.step_counts(sae) != (STEPS, {}):
            wrong[order].append(str(sk.step_counts(sae)))
        # Each rank's own, but that DDP hands on the buffers of the first.
        if hasattr(tools, "topk_threshold") and differs(sae.topk_threshold, tools.topk_threshold, 1e-6):
            wrong[order].append(f"threshold {sae.topk_threshold}, of its own {tools.topk_threshold}")
    return wrong


def whole() -> list[str]:
    """Where rows do not know of each other, the mean of the ranks' gradients is that of one process on all rows."""
    wrong = []
    for name in ("topk", "jumprelu, step"):
        sae = Step(make(name))
        sae(batches()[0]).backward()
        mean = alone(name)[0]
        wrapped = DistributedDataParallel(sk.accelerate(Step(make(name))))
        wrapped(part(batches()[0], distributed.get_rank())).backward()
        for path, value in found(sae).items():
            if differs(mean[path], value, 1e-5) or differs(found(wrapped)[path], value, 1e-5):
                wrong.append(f"{name} {path}")
    return wrong


def restored(early: Any) -> list[str]:
    """An object of the tool again in the middle of a run, whose parameters must not move."""
    wrapped = DistributedDataParallel(Step(early))
    sk.restore(wrapped)
    theirs = trained(DistributedDataParallel(Step(make("topk"))))
    return compared(trained(wrapped), theirs, alone("topk"))


def registered() -> list[str]:
    """fully_shard of the SAE itself, whose step is registered as a forward pass: once it is accelerated."""
    wrong = []
    for order in ("before", "after", "too late"):
        sae = make("topk")
        for what in {"before": "abr", "after": "bar", "too late": "bra"}[order]:
            try:
                {"a": sk.accelerate, "b": fully_shard, "r": register}[what](sae)
            except sk.NotAccelerated as error:
                wrong.append(str(error))
        out = sae.training_forward_pass(given(sae, part(batches()[0], distributed.get_rank())))
        out.loss.backward()
        want = alone("topk")[0]
        wrong += [f"{order}: {path}" for path, value in found(sae).items() if differs(value, want[path], 1e-5)]
        if order != "too late" and sk.step_counts(sae) != (1, {}):
            wrong.append(f"{order}: {sk.step_counts(sae)}")
    return wrong


def register(sae: Any) -> None:
    register_fsdp_forward_method(sae, "training_forward_pass")


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = CASES[int(os.environ["WORLD_SIZE"])]
    first = [sk.accelerate(make(name)) for name, _ in cases]
    another = sk.accelerate(make("topk"))
    distributed.init_process_group("gloo")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problems: dict[str, Any] = {
            f"{name} {way}": case(name, way, orders, early)
            for ((name, way), orders), early in zip(cases.items(), first, strict=True)
        }
        problems |= {"whole": whole(), "restored": restored(copy.deepcopy(another)), "registered": registered()}
    problems["strides"] = [str(one.message)[:200] for one in caught if "strides" in str(one.message)]
    every: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, problems)
    if distributed.get_rank() == 0:
        sys.stdout.write(json.dumps(every) + "\n")
        sys.stdout.flush()
    ranks.leave()
