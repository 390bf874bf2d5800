"""The native CPU backend: hands addresses and strides to the kernels of csrc/cpu.

Inputs are validated by the ops; here tensors only turn into views, and outputs are allocated. Every call uses at most
`torch.get_num_threads()` threads, torch's own where it runs on OpenMP, and its result does not depend on how many.
"""

from __future__ import annotations

import torch

from saekernels.backends.cpu.codes import decode, gather_dot, gather_matmul, segment_outer, segment_sum
from saekernels.backends.cpu.encode import LOOKS, encode_threshold, encode_topk, fingerprint, prepare, topk
from saekernels.backends.cpu.loss import linear_ce_kl, linear_ce_kl_backward
from saekernels.backends.cpu.native import (
    DTYPE_CODES,
    available,
    describe,
    screening,
    set_screening,
    set_simd_level,
    simd_level,
    stats,
)
from saekernels.backends.cpu.optim import adam_step

NAME = "cpu"
# A wrong index or offset is found, and named, in native code.
CHECKS_ENTRIES = True

__all__ = [
    "CHECKS_ENTRIES",
    "LOOKS",
    "NAME",
    "adam_step",
    "available",
    "can_use",
    "decode",
    "describe",
    "encode_threshold",
    "encode_topk",
    "fingerprint",
    "gather_dot",
    "gather_matmul",
    "linear_ce_kl",
    "linear_ce_kl_backward",
    "prepare",
    "screening",
    "segment_outer",
    "segment_sum",
    "set_screening",
    "set_simd_level",
    "simd_level",
    "stats",
    "topk",
]

_OPS = frozenset(
    (
        "encode_topk",
        "encode_threshold",
        "prepare",
        "topk",
        "decode",
        "gather_dot",
        "gather_matmul",
        "segment_outer",
        "segment_sum",
        "linear_ce_kl",
        "linear_ce_kl_backward",
        "adam_step",
    )
)


def can_use(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """None when this backend computes `op` for such tensors, else why not."""
    if op not in _OPS:
        return "not implemented natively"
    if device_type != "cpu":
        return f"serves cpu tensors, not {device_type}"
    if dtype not in DTYPE_CODES:
        return f"serves float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    return None
