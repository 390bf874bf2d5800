"""One rank of tests/parallel/test_placement.py: the tiny model cut over all ranks, evaluated; prints figures as JSON.

Arguments: "fsdp" (torch's fully_shard) or "tp" (the tensor-parallel plan of transformers), and the model's folder.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

import ranks
import tiny_lm
from saekernels.eval import evaluate


def load(kind: str, folder: str) -> Any:
    if kind == "tp":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the keyword of older versions, which all know
            return AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto").eval()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


torch.set_num_threads(1)
distributed.init_process_group("gloo")
mesh = init_device_mesh("cpu", (distributed.get_world_size(),), mesh_dim_names=(sys.argv[1],))
model = load(*sys.argv[1:])
assert any(hasattr(value, "full_tensor") for value in model.parameters()), "it is cut"
texts = tiny_lm.few_documents()
report = evaluate(model, tiny_lm.tokenizer(), tiny_lm.saes(), texts, bootstrap=5, mesh=mesh).to_dict()
if distributed.get_rank() == 0:
    print(json.dumps({**report, "run": report["run"]["layer_reuse"]}), flush=True)
distributed.barrier()
ranks.leave()
