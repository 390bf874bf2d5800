"""The ops that can be timed, by name."""

from __future__ import annotations

from saekernels.bench.measure.contenders import Op
from saekernels.bench.ops.adam import ADAM, ADAM_ROWS
from saekernels.bench.ops.calls import CALLED
from saekernels.bench.ops.decode import DECODE
from saekernels.bench.ops.encode import ENCODE
from saekernels.bench.ops.gather_matmul import GATHER_MATMUL
from saekernels.bench.ops.loss import LOSS
from saekernels.bench.ops.loss_train import LOSS_TRAIN
from saekernels.bench.ops.sae import SAE_JUMPRELU, SAE_TOPK
from saekernels.bench.ops.spliced import SPLICED
from saekernels.bench.ops.steps import STEPS
from saekernels.bench.ops.threshold import THRESHOLD
from saekernels.bench.ops.train import SAE_TRAIN

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        ENCODE,
        THRESHOLD,
        DECODE,
        GATHER_MATMUL,
        SAE_TOPK,
        SAE_JUMPRELU,
        SAE_TRAIN,
        ADAM,
        ADAM_ROWS,
        LOSS,
        LOSS_TRAIN,
        SPLICED,
        *STEPS,
        *CALLED,
    )
}
GROUPS = {
    "sae": (SAE_TOPK.name, SAE_JUMPRELU.name, SAE_TRAIN.name),
    "train": tuple(op.name for op in STEPS),
    "calls": tuple(op.name for op in CALLED),
}
USUAL = tuple(name for name in OPS if name not in GROUPS["train"])
"""Where none is named: training steps of classes take minutes, and have a command of their own."""
