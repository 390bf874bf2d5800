"""The ops that can be timed, by name."""

from __future__ import annotations

from .contenders import Op
from .decode import DECODE
from .encode import ENCODE
from .loss import LOSS
from .sae import SAE_JUMPRELU, SAE_TOPK
from .spliced import SPLICED
from .threshold import THRESHOLD
from .train import SAE_TRAIN

OPS: dict[str, Op] = {
    op.name: op for op in (ENCODE, THRESHOLD, DECODE, SAE_TOPK, SAE_JUMPRELU, SAE_TRAIN, LOSS, SPLICED)
}
GROUPS = {"sae": (SAE_TOPK.name, SAE_JUMPRELU.name, SAE_TRAIN.name)}
