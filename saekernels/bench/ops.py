"""The ops that can be timed, by name."""

from __future__ import annotations

from saekernels.bench.contenders import Op
from saekernels.bench.decode import DECODE
from saekernels.bench.encode import ENCODE
from saekernels.bench.loss import LOSS
from saekernels.bench.sae import SAE_JUMPRELU, SAE_TOPK
from saekernels.bench.spliced import SPLICED
from saekernels.bench.threshold import THRESHOLD
from saekernels.bench.train import SAE_TRAIN

OPS: dict[str, Op] = {
    op.name: op for op in (ENCODE, THRESHOLD, DECODE, SAE_TOPK, SAE_JUMPRELU, SAE_TRAIN, LOSS, SPLICED)
}
GROUPS = {"sae": (SAE_TOPK.name, SAE_JUMPRELU.name, SAE_TRAIN.name)}
