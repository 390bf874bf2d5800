"""The definition: every primitive in plain torch, on any device, float64 included.

Written to be read and to be right, not to be fast: dot products of encoders and unembeddings go row by row, because a
matrix product over many rows may sum in another order for another batch size.
"""

from __future__ import annotations

import torch

from saekernels.backends.reference.adam import adam_step
from saekernels.backends.reference.codes import decode, gather_dot, gather_matmul, segment_outer, segment_sum
from saekernels.backends.reference.encode import encode_threshold, encode_topk, topk
from saekernels.backends.reference.linear_ce_kl import linear_ce_kl, linear_ce_kl_backward

__all__ = [
    "CHECKS_ENTRIES",
    "NAME",
    "adam_step",
    "available",
    "can_use",
    "decode",
    "encode_threshold",
    "encode_topk",
    "gather_dot",
    "gather_matmul",
    "linear_ce_kl",
    "linear_ce_kl_backward",
    "segment_outer",
    "segment_sum",
    "topk",
]

NAME = "reference"
CHECKS_ENTRIES = False


def available() -> str | None:
    """Torch is always there."""
    return None


def can_use(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Every op but `prepare` (it has no screen), every device and floating dtype."""
    if op == "prepare":
        return "does not screen, so has nothing to prepare"
    return None if dtype.is_floating_point else f"{dtype} is not a floating dtype"
