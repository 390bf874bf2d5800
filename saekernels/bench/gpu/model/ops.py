"""The kernels of an op, by the name that cases have for it."""

from __future__ import annotations

import torch

from saekernels.bench.gpu.cards import Card
from saekernels.bench.gpu.model.codes import decode, gather_matmul, train
from saekernels.bench.gpu.model.encode import encode
from saekernels.bench.gpu.model.kernels import Kernel
from saekernels.bench.gpu.model.loss import loss, loss_train
from saekernels.bench.measure.shapes import Shape


def predict(op: str, shape: Shape, dtype: torch.dtype, card: Card, precision: str = "exact") -> list[Kernel]:
    """The kernels of an op by name; whole SAEs subtract a pre_bias."""
    if op == "encode":
        return encode(shape, dtype, card, precision)
    if op == "sae_topk":
        return encode(shape, dtype, card, precision, centred=True) + decode(shape, dtype, card)
    others = {"decode": decode, "gather_matmul": gather_matmul, "sae_train": train, "loss": loss}
    return (others | {"loss_train": loss_train})[op](shape, dtype, card)
