"""What is fuzzed: name -> target. A target makes one case from a random generator and judges what came of it."""

from __future__ import annotations

from fuzz import arguments, layers, ops, readers, saes
from fuzz.engine import Target

TARGETS: dict[str, Target] = {
    "encode_topk": ops.encode_topk,
    "encode_threshold": ops.encode_threshold,
    "topk": ops.topk,
    "decode": ops.decode,
    "decode_csr": ops.decode_csr,
    "gather_matmul": ops.gather_matmul,
    "linear_ce_kl": ops.linear_ce_kl,
    "gradients": ops.gradients,
    "wrong arguments": arguments.wrong,
    "SAE files": saes.damaged,
    "layers and crosscoders": layers.damaged,
    "text": readers.text,
    "tasks": readers.tasks,
    "families": readers.families,
    "reports": readers.reports,
    "checkpoints of a run": readers.workspaces,
    "command line": readers.command_line,
}
