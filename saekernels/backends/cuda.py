"""The native CUDA backend: per-row selection and grouping by latent, where Triton is weak.

It serves the primitive `topk`; the Triton backend takes its other kernels from here where this is built, and does
without where it is not. Tensors are allocated here, by torch, so calls may be captured into a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from saekernels import _build_info
from saekernels.backends import reference

NAME = "cuda"
CHECKS_ENTRIES = False

_native: ModuleType | None = None
_import_error = ""
try:
    _native = importlib.import_module("saekernels._cuda")
except ImportError as error:
    _import_error = str(error)

_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MOST_KEPT = 2048  # kMostKept of csrc/cuda/kernels.h


@functools.cache
def available() -> str | None:
    """None when the native module is loaded and there is a GPU, else why not."""
    if _native is None:
        build = _build_info.read("cuda")
        if build["status"] == "built":
            return f"native module was built but does not load: {_import_error}"
        return f"native module not built ({build['detail']})"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


def can_use(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """None when this backend computes `op` for such tensors, else why not."""
    if op != "topk":
        return "not implemented in CUDA C++"
    if device_type != "cuda":
        return f"serves cuda tensors, not {device_type}"
    if dtype not in _DTYPE_CODES:
        return f"serves float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    return None


def describe() -> dict[str, str]:
    """What `saekernels info` prints of this backend; values are one line each."""
    build = _build_info.read("cuda")
    lines = {"status": available() or "usable", "build": f"{build['status']}: {build['detail']}"}
    if _native is not None:
        lines |= {"compiler": _native.compiler(), "architectures": _native.architectures()}
    return lines


def _module() -> ModuleType:
    if _native is None:
        raise RuntimeError(available())
    return _native


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


def can_select(k: int, capacity: int) -> bool:
    """Whether `select_candidates` serves these sizes."""
    return k <= MOST_KEPT and k <= capacity


def select_candidates(
    candidates: Tensor, counts: Tensor, k: int, dtype: torch.dtype, relu: bool
) -> tuple[Tensor, Tensor]:
    """Values [T, k] in `dtype` and indices [T, k] int32 of the k best of each row's candidates, best first.

    Args:
        candidates: [T, capacity] int64 keys, contiguous, of which a row has the first min(counts[t], capacity).
        relu: negative values become 0.
    """
    rows, capacity = candidates.shape
    device = candidates.device
    values = torch.empty(rows, k, dtype=dtype, device=device)
    indices = torch.empty(rows, k, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        _module().select(
            candidates.data_ptr(),
            counts.data_ptr(),
            rows,
            capacity,
            k,
            relu,
            _DTYPE_CODES[dtype],
            values.data_ptr(),
            indices.data_ptr(),
            _stream(device),
        )
    return values, indices


def topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best elements of each row of scores [T, F], best first, and their indices int32.

    More than MOST_KEPT are left to the reference, which sorts whole rows.
    """
    if k > MOST_KEPT:
        return reference.topk(scores, k)
    rows, columns = scores.shape
    device = scores.device
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    scratch = _module().topk_scratch(rows, columns, k, multiprocessors)
    parts = torch.empty(scratch, dtype=torch.int64, device=device)
    values = torch.empty(rows, k, dtype=scores.dtype, device=device)
    indices = torch.empty(rows, k, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        _module().topk(
            scores.data_ptr(),
            rows,
            columns,
            scores.stride(0),
            scores.stride(1),
            _DTYPE_CODES[scores.dtype],
            k,
            multiprocessors,
            parts.data_ptr(),
            values.data_ptr(),
            indices.data_ptr(),
            _stream(device),
        )
    return values, indices


def group_by_latent(indices: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """Entry numbers by latent [nnz] int32, ascending within one, and where each latent's begin, [F + 1] int64.

    Args:
        indices: [nnz] int32, each in [0, F).
    """
    indices = indices.contiguous()
    count, device = indices.shape[0], indices.device
    scratch = torch.empty(_module().group_scratch(count), dtype=torch.uint8, device=device)
    order = torch.empty(count, dtype=torch.int32, device=device)
    starts = torch.empty(n_latents + 1, dtype=torch.int64, device=device)
    with torch.cuda.device(device):
        _module().group_by_latent(
            indices.data_ptr(),
            count,
            n_latents,
            scratch.data_ptr(),
            order.data_ptr(),
            starts.data_ptr(),
            _stream(device),
        )
    return order, starts
