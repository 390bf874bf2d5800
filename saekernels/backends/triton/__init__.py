"""The Triton backend: every primitive on NVIDIA GPUs, and on CPU tensors in Triton's interpreter, which is for tests.

One room per kind of op: `encode`, `codes`, `loss`. `launch` starts kernels, `configs` says how large their tiles are.
Per-row selection and grouping by latent go to the CUDA backend where that is built.
"""

from __future__ import annotations

import functools

import torch

NAME = "triton"
CHECKS_ENTRIES = False

_import_error = ""
try:
    from saekernels.backends.triton.codes.decode import decode
    from saekernels.backends.triton.codes.gather_dot import gather_dot
    from saekernels.backends.triton.codes.gather_matmul import gather_matmul
    from saekernels.backends.triton.codes.segment_outer import segment_outer
    from saekernels.backends.triton.codes.segment_sum import segment_sum
    from saekernels.backends.triton.encode.encode_threshold import encode_threshold
    from saekernels.backends.triton.encode.encode_topk import encode_topk
    from saekernels.backends.triton.launch import INTERPRETING
    from saekernels.backends.triton.loss.linear_ce_kl import linear_ce_kl
    from saekernels.backends.triton.loss.linear_ce_kl_backward import linear_ce_kl_backward
    from saekernels.backends.triton.topk import topk
except ImportError as error:
    _import_error = str(error)
    INTERPRETING = False

__all__ = [
    "CHECKS_ENTRIES",
    "NAME",
    "available",
    "can_use",
    "decode",
    "describe",
    "encode_threshold",
    "encode_topk",
    "gather_dot",
    "gather_matmul",
    "linear_ce_kl",
    "linear_ce_kl_backward",
    "segment_outer",
    "segment_sum",
    "stats",
    "topk",
]

_OPS = frozenset(
    (
        "encode_topk",
        "encode_threshold",
        "topk",
        "decode",
        "gather_dot",
        "gather_matmul",
        "segment_outer",
        "segment_sum",
        "linear_ce_kl",
        "linear_ce_kl_backward",
    )
)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# bf16 products and asynchronous copies.
LEAST_CAPABILITY = (8, 0)


@functools.cache
def available() -> str | None:
    """None when Triton is installed and has a GPU that it serves, or its interpreter is asked for, else why not."""
    if _import_error:
        return f"triton does not load: {_import_error}"
    if INTERPRETING:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.version.hip is not None:
        return "made for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return f"needs compute capability 8.0, the current device has {capability[0]}.{capability[1]}"
    return None


def can_use(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """None when this backend computes `op` for such tensors, else why not."""
    if op not in _OPS:
        return "not implemented in Triton"
    serves = "cpu" if INTERPRETING else "cuda"
    if device_type != serves:
        return f"serves {serves} tensors, not {device_type}"
    if INTERPRETING and dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly"
    if dtype not in _DTYPES:
        return f"serves float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    return None


def describe() -> dict[str, str]:
    """What `saekernels info` prints of this backend; values are one line each."""
    lines = {"status": available() or "usable"}
    if not _import_error:
        from saekernels.backends.triton import configs
        from saekernels.backends.triton.encode.hopper import screen_hopper

        lines["triton"] = configs.VERSION + (", interpreting" if INTERPRETING else "")
        lines["hopper screen"] = screen_hopper.state()
    return lines


def stats() -> dict[str, int]:
    """What the encoders did since the process began: fallback_rows, those that no screen could serve."""
    if _import_error:
        return {"fallback_rows": 0}
    from saekernels.backends.triton import failed

    return failed.stats()
