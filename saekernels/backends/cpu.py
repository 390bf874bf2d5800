"""The native CPU backend: hands addresses and strides to the kernels of csrc/cpu.

Inputs are validated by the ops; here tensors only turn into views, and outputs are allocated. Every call uses at most
`torch.get_num_threads()` threads, torch's own where it runs on OpenMP, and its result does not depend on how many.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor

from saekernels import _build_info

NAME = "cpu"
# A wrong index or offset is found, and named, in native code.
CHECKS_ENTRIES = True

_native: ModuleType | None = None
_import_error = ""
try:
    _native = importlib.import_module("saekernels._cpu")
except ImportError as error:
    _import_error = str(error)

_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACTIVATION_CODES = {"none": 0, "relu": 1, "abs": 2}
_OPS = frozenset(
    (
        "encode_topk",
        "encode_threshold",
        "prepare",
        "topk",
        "decode",
        "gather_dot",
        "segment_outer",
        "segment_sum",
        "linear_ce_kl",
    )
)

# Address, rows, columns, row stride, column stride (elements), dtype code.
View = tuple[int, int, int, int, int, int]


def available() -> str | None:
    """None when the native module is loaded and runs here, else why not."""
    if _native is None:
        build = _build_info.read()
        if build["status"] == "built":
            return f"native module was built but does not load: {_import_error}"
        return f"native module not built ({build['detail']})"
    try:
        _native.simd_level()
    except ValueError as error:
        return f"SAEKERNELS_SIMD: {error}"
    return None


def can_use(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """None when this backend computes `op` for such tensors, else why not."""
    if op not in _OPS:
        return "not implemented natively"
    if device_type != "cpu":
        return f"serves cpu tensors, not {device_type}"
    if dtype not in _DTYPE_CODES:
        return f"serves float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    return None


def simd_level() -> str:
    """The instruction set in use: "avx512", "avx2" or "portable"."""
    return str(_module().simd_level())


def set_simd_level(name: str) -> None:
    """Force a level, or return to the best one with "auto". Raises ValueError where this machine lacks it."""
    _module().set_simd_level(name)


def screening() -> str:
    """The type in which encoders screen before they score exactly: "bf16" or "fp32"."""
    return str(_module().screening())


def set_screening(name: str) -> None:
    """Force a screen, "bf16" or "fp32", or return to the faster one with "auto". No result depends on it."""
    _module().set_screening(name)


def stats() -> dict[str, int]:
    """What the encoders did since the process began.

    direct_rows: scored exactly at once, being few; screened_rows: certified after a screen; rescored: scores computed
    exactly after a screen; overflow_rows, unbounded_rows: rows that no screen could certify (more candidates than
    room; NaN, infinities or norms past all bounds) and that were scored exactly as a whole.
    """
    return dict(_module().stats())


def describe() -> dict[str, str]:
    """What `saekernels info` prints of this backend; values are one line each."""
    build = _build_info.read()
    if _native is None:
        return {"status": available() or "", "build": f"{build['status']}: {build['detail']}"}
    return {
        "status": available() or "usable",
        "build": f"{build['status']}: {build['detail']}",
        "compiler": _native.compiler(),
        "simd level": _native.simd_level() if available() is None else "none",
        "simd levels here": _native.supported_simd_levels(),
        "screening": _screening_line(),
        "threads": f"{torch.get_num_threads()}, {'those of torch' if _native.uses_host_threads() else 'its own'}",
    }


def _screening_line() -> str:
    if _native is None or available() is not None:
        return "none"
    if _native.screening() == "fp32":
        return "fp32" + ("" if _native.bf16_hardware() else " (no bf16 products in hardware here)")
    return "bf16, " + (_native.bf16_hardware() or "forced: no hardware for it here")


def _module() -> ModuleType:
    if _native is None:
        raise RuntimeError(available())
    return _native


def _view(matrix: Tensor) -> View:
    rows, columns = matrix.shape
    return (matrix.data_ptr(), rows, columns, matrix.stride(0), matrix.stride(1), _DTYPE_CODES[matrix.dtype])


def _vector(vector: Tensor | None) -> View | None:
    """A vector (or a scalar) as a matrix of one row."""
    if vector is None:
        return None
    stride = vector.stride(0) if vector.dim() else 1
    return (vector.data_ptr(), 1, vector.numel(), vector.numel(), stride, _DTYPE_CODES[vector.dtype])


def _bytes(block: Tensor | None) -> tuple[int, int] | None:
    return None if block is None else (block.data_ptr(), block.numel())


def prepare(W_enc: Tensor) -> Tensor:
    """Norms, rounding errors and, for a bf16 screen, a packed copy of W_enc [F, d]: [nbytes] uint8."""
    block = torch.empty(_module().prepared_bytes(*W_enc.shape), dtype=torch.uint8, device="cpu")
    _module().prepare(_view(W_enc), torch.get_num_threads(), block.data_ptr())
    return block


def fingerprint(W_enc: Tensor) -> int:
    """A hash of 4,096 elements spread evenly over W_enc, or of all if they are fewer."""
    return int(_module().fingerprint(_view(W_enc), 4096))


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    pre_bias: Tensor | None,
    k: int,
    activation: str,
    prepared: Tensor | None = None,
    *,
    hint: Tensor | None = None,
    precision: str = "exact",
    out: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Values [T, k] in `out` or x.dtype, indices [T, k] int32, best first; exact at any precision, without a hint."""
    values = torch.empty(x.shape[0], k, dtype=out or x.dtype, device="cpu")
    indices = torch.empty(x.shape[0], k, dtype=torch.int32, device="cpu")
    _module().encode_topk(
        _view(x),
        _view(W_enc),
        _vector(b_enc),
        _vector(pre_bias),
        _bytes(prepared),
        k,
        _ACTIVATION_CODES[activation],
        torch.get_num_threads(),
        _DTYPE_CODES[values.dtype],
        values.data_ptr(),
        indices.data_ptr(),
    )
    return values, indices


def encode_threshold(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    pre_bias: Tensor | None,
    threshold: Tensor,
    prepared: Tensor | None = None,
    *,
    precision: str = "exact",
) -> tuple[Tensor, Tensor, Tensor]:
    """CSR codes of the latents above their threshold: values [nnz], indices [nnz] int32, offsets [T + 1] int64.

    Exact at any precision.
    """
    codes = _module().encode_threshold(
        _view(x),
        _view(W_enc),
        _vector(b_enc),
        _vector(pre_bias),
        _bytes(prepared),
        _vector(threshold),
        torch.get_num_threads(),
    )
    values = torch.empty(codes.nnz, dtype=x.dtype, device="cpu")
    indices = torch.empty(codes.nnz, dtype=torch.int32, device="cpu")
    offsets = torch.empty(x.shape[0] + 1, dtype=torch.int64, device="cpu")
    codes.move_to(_DTYPE_CODES[x.dtype], values.data_ptr(), indices.data_ptr(), offsets.data_ptr())
    return values, indices, offsets


def topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best elements of each row of scores [T, F], best first, and their indices int32."""
    values = torch.empty(scores.shape[0], k, dtype=scores.dtype, device="cpu")
    indices = torch.empty(scores.shape[0], k, dtype=torch.int32, device="cpu")
    _module().topk(_view(scores), k, torch.get_num_threads(), values.data_ptr(), indices.data_ptr())
    return values, indices


def decode(
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    W_dec: Tensor,
    b_dec: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """[T, d_out] in `dtype` or W_dec's: the sum of values[e] * W_dec[indices[e]] in a row's order, plus b_dec."""
    values, indices, offsets = values.contiguous(), indices.contiguous(), offsets.contiguous()
    rows = offsets.numel() - 1
    out = torch.empty(rows, W_dec.shape[1], dtype=dtype or W_dec.dtype, device="cpu")
    _module().decode(
        _vector(values),
        indices.data_ptr(),
        offsets.data_ptr(),
        rows,
        indices.numel(),
        _view(W_dec),
        _vector(b_dec),
        torch.get_num_threads(),
        _view(out),
    )
    return out


def gather_dot(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    """[nnz]: out[e] = <a[row of e], W[indices[e]]>."""
    indices, offsets = indices.contiguous(), offsets.contiguous()
    out = torch.empty(indices.numel(), dtype=a.dtype, device="cpu")
    _module().gather_dot(
        _view(a),
        _view(W),
        indices.data_ptr(),
        offsets.data_ptr(),
        offsets.numel() - 1,
        indices.numel(),
        torch.get_num_threads(),
        out.data_ptr(),
    )
    return out


def segment_outer(values: Tensor, indices: Tensor, offsets: Tensor, a: Tensor, F: int) -> Tensor:
    """[F, d]: row i sums values[e] * a[row of e] over the entries with indices[e] == i, in ascending e."""
    values, indices, offsets = values.contiguous(), indices.contiguous(), offsets.contiguous()
    out = torch.empty(F, a.shape[1], dtype=a.dtype, device="cpu")
    _module().segment_outer(
        _vector(values),
        indices.data_ptr(),
        offsets.data_ptr(),
        offsets.numel() - 1,
        indices.numel(),
        _view(a),
        F,
        torch.get_num_threads(),
        _view(out),
    )
    return out


def segment_sum(values: Tensor, indices: Tensor, F: int) -> Tensor:
    """[F]: the sum of the values of each latent's entries, in ascending order."""
    values, indices = values.contiguous(), indices.contiguous()
    out = torch.empty(F, dtype=values.dtype, device="cpu")
    _module().segment_sum(_vector(values), indices.data_ptr(), indices.numel(), F, out.data_ptr())
    return out


def linear_ce_kl(
    h_p: Tensor,
    h_q: Tensor,
    W_U: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ce_p, ce_q, KL(p || q) and top-1 agreement, each [T] float32."""
    targets = targets.contiguous()
    ce_p, ce_q, kl, agree = (torch.empty(h_p.shape[0], dtype=torch.float32, device="cpu") for _ in range(4))
    _module().linear_ce_kl(
        _view(h_p),
        _view(h_q),
        _view(W_U),
        _vector(bias),
        targets.data_ptr(),
        softcap or 0.0,
        ignore_index,
        torch.get_num_threads(),
        ce_p.data_ptr(),
        ce_q.data_ptr(),
        kl.data_ptr(),
        agree.data_ptr(),
    )
    return ce_p, ce_q, kl, agree
