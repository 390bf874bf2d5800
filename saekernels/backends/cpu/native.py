"""The native module, if it is built and runs here: its levels, its counters, and tensors as it takes them."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch
from torch import Tensor

from saekernels import _build_info

LOADED: ModuleType | None = None
_import_error = ""
try:
    LOADED = importlib.import_module("saekernels._cpu")
except ImportError as error:
    _import_error = str(error)

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# Address, rows, columns, row stride, column stride (elements), dtype code.
View = tuple[int, int, int, int, int, int]


def available() -> str | None:
    """None when the native module is loaded and runs here, else why not."""
    if LOADED is None:
        build = _build_info.read()
        if build["status"] == "built":
            return f"native module was built but does not load: {_import_error}"
        return f"native module not built ({build['detail']})"
    for variable, look in (("SAEKERNELS_SIMD", LOADED.simd_level), ("SAEKERNELS_SCREEN", LOADED.screening)):
        try:
            look()
        except ValueError as error:
            return f"{variable}: {error}"
    if os.environ.get("SAEKERNELS_THREADS", "") not in ("", "torch", "own"):
        return f"SAEKERNELS_THREADS: got {os.environ['SAEKERNELS_THREADS']!r}, need 'torch' or 'own'"
    return None


def simd_level() -> str:
    """The instruction set in use, one of `supported_simd_levels`: "amx", "avx512", "neon", "portable", ..."""
    return str(module().simd_level())


def set_simd_level(name: str) -> None:
    """Force a level, or return to the best one with "auto". Raises ValueError where this machine lacks it."""
    module().set_simd_level(name)


def screening() -> str:
    """What encoders screen in before they score exactly: a forced screen, or the machine's in the order of trial.

    "fp32", "bf16", "int16", "int8"; where the machine chooses also "int8+bf16", "int8+int16" or "int8+fp32": int8 for
    narrow depths, and rows that it leaves go to the other.
    """
    return str(module().screening())


def set_screening(name: str) -> None:
    """Force a screen, "int8", "int16", "bf16" or "fp32", or return to the fastest with "auto".

    No result depends on it.
    """
    module().set_screening(name)


def stats() -> dict[str, int]:
    """What the encoders did since the process began.

    direct_rows: scored exactly at once, being few; screened_rows: certified after a screen, namely that of int8_rows,
    int16_rows, bf16_rows or fp32_rows; rescreened_rows: met another screen, the first having left more candidates than
    room or too few above its floor; rescored: scores computed exactly after a screen; overflow_rows, unbounded_rows:
    rows that no screen could certify (more candidates than room; NaN, infinities or norms past all bounds) and that
    were scored exactly as a whole; fallback_rows: those that any screen left so. A block of rows that int8
    declines as a whole, because its window would hold too many latents, counts only for the screen that served it.
    """
    return dict(module().stats())


def describe() -> dict[str, str]:
    """What `saekernels info` prints of this backend; values are one line each."""
    build = _build_info.read()
    if LOADED is None:
        return {"status": available() or "", "build": f"{build['status']}: {build['detail']}"}
    return {
        "status": available() or "usable",
        "build": f"{build['status']}: {build['detail']}",
        "compiler": LOADED.compiler(),
        "simd level": LOADED.simd_level() if available() is None else "none",
        "simd levels here": LOADED.supported_simd_levels(),
        "screening": _screening_line(),
        "threads": f"{torch.get_num_threads()}, {'those of torch' if LOADED.uses_host_threads() else 'its own'}",
    }


def _screening_line() -> str:
    if LOADED is None or available() is not None:
        return "none"
    if LOADED.screening() == "fp32":
        return "fp32" + ("" if LOADED.screening_hardware() else " (nothing multiplies 8 or 16 bits faster here)")
    return f"{LOADED.screening()}, " + (LOADED.screening_hardware() or "forced: no hardware for it here")


def module() -> ModuleType:
    """The native module. Raises RuntimeError, with the reason, where there is none."""
    if LOADED is None:
        raise RuntimeError(available())
    return LOADED


def view(matrix: Tensor) -> View:
    """A matrix, where it lies."""
    rows, columns = matrix.shape
    row_stride, column_stride = matrix.stride()
    return (matrix.data_ptr(), rows, columns, row_stride, column_stride, DTYPE_CODES[matrix.dtype])


def vector(vector: Tensor | None) -> View | None:
    """A vector (or a scalar) as a matrix of one row."""
    if vector is None:
        return None
    size, (stride,) = vector.numel(), vector.stride() or (1,)
    return (vector.data_ptr(), 1, size, size, stride, DTYPE_CODES[vector.dtype])


def bytes_of(block: Tensor | None) -> tuple[int, int] | None:
    """The address of prepared weights, and their bytes."""
    return None if block is None else (block.data_ptr(), block.numel())
