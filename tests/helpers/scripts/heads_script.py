"""One rank of tests/parallel/test_heads.py: models with a head of each kind, shared in several ways; prints figures.

Arguments: ways of sharing, "data" (documents), "latents" (of each SAE) and "fsdp" (the model's parameters).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaForCausalLM

import ranks
import tiny_lm
from interrupted import in_small_chunks
from saekernels import parallel
from saekernels.eval import evaluate

CHUNK = 40  # positions, so that every rank has a share


class Mixture(nn.Module):
    """Logits of two linear heads, mixed: a module and no matrix."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two = nn.Linear(width, vocabulary), nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return torch.logaddexp(self.one(x), 2.0 * self.two(x))


class Normed(LlamaForCausalLM):
    """Logits over their spread in each row: no module gives them."""

    def forward(self, *given: Any, **named: Any) -> Any:
        output = super().forward(*given, **named)
        output.logits = output.logits / output.logits.std(-1, keepdim=True)
        return output


def make(kind: str) -> Any:
    model: Any = tiny_lm.model()
    if kind == "module":
        model.lm_head = Mixture(tiny_lm.WIDTH, 320)
    elif kind == "whole":
        model.__class__ = Normed
    return model.eval().requires_grad_(False)


def figures(model: Any, saes: Any, mesh: Any = None) -> dict[str, Any]:
    texts = tiny_lm.few_documents()
    found = evaluate(model, tiny_lm.tokenizer(), saes, texts, bootstrap=5, batch_size=2, mesh=mesh).to_dict()
    return {**found, "run": found["run"]["head"]}


def shared(kind: str, way: str) -> dict[str, Any]:
    """The figures of one model on all ranks."""
    count = distributed.get_world_size()
    shape, names = {
        "data": ((count, 1), ("data", "latents")),
        "latents": ((1, count), ("data", "latents")),
        "fsdp": ((count,), ("fsdp",)),
    }[way]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model, saes = make(kind), tiny_lm.saes()
    if way == "latents":
        saes = {site: parallel.shard(sae, mesh.get_group("latents")) for site, sae in saes.items()}
    if way == "fsdp":
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return figures(model, saes, mesh)


if __name__ == "__main__":
    torch.set_num_threads(1)
    in_small_chunks(CHUNK)
    distributed.init_process_group("gloo")
    found = {f"{kind} {way}": shared(kind, way) for way in sys.argv[1:] for kind in ("module", "whole")}
    if distributed.get_rank() == 0:
        print(json.dumps(found), flush=True)
    distributed.barrier()
    ranks.leave()
