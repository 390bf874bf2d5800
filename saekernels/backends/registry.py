"""Which backend serves which op, and why another does not.

A backend is a module with `NAME`, `CHECKS_ENTRIES` (whether it finds wrong indices and offsets itself), `available()`,
`can_use(op, device_type, dtype)` and one function per primitive. Both questions answer None for yes and a reason for
no. Backends are asked in the order of `PREFERENCE`; an explicit choice (`backend=`, SAEKERNELS_BACKEND, or a variable
of the CPU backend, see `misset`) that cannot serve raises instead of falling through, so speed may vary silently but a
request never does.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType
from typing import NamedTuple

import torch

PREFERENCE = ("cpu", "cuda", "triton", "reference")
PRIMITIVES = (
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
# For speed alone: ops do without where no backend has it.
OPTIONAL = ("prepare",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Read once, so that a process computes with one backend from start to end.
ENVIRONMENT_CHOICE = os.environ.get("SAEKERNELS_BACKEND") or "auto"


class Choice(NamedTuple):
    """One row of `explain`: the backend that serves `op`, and the reasons of those before and after it."""

    op: str
    device: str
    dtype: str
    backend: str
    others: dict[str, str]


@functools.cache
def load(name: str) -> ModuleType:
    """Import a backend module by name. Raises ValueError for a name that does not exist."""
    if (wrong := _unknown("backend", name)) is not None:
        raise ValueError(wrong)
    return importlib.import_module(f"saekernels.backends.{name}")


def _unknown(source: str, name: str) -> str | None:
    if name in PREFERENCE:
        return None
    return f"{source}: got {name!r}, need one of 'auto', {', '.join(map(repr, PREFERENCE))}"


def refusal(name: str, op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why backend `name` cannot serve `op`, or None when it can."""
    module = load(name)
    return module.available() or module.can_use(op, device_type, dtype)


def misset() -> str | None:
    """What is wrong with a variable that chooses: a backend that is none, native kernels that cannot be had."""
    if ENVIRONMENT_CHOICE != "auto" and (wrong := _unknown("SAEKERNELS_BACKEND", ENVIRONMENT_CHOICE)) is not None:
        return wrong
    reason = load("cpu").available() or ""
    return reason if reason.startswith("SAEKERNELS_") else None


def _on_request_only(name: str) -> str | None:
    """Why a backend that can serve is not chosen unless by name."""
    return "interprets its kernels, which is for tests" if getattr(load(name), "INTERPRETING", False) else None


@functools.cache
def select(op: str, device_type: str, dtype: torch.dtype, choice: str | None = None) -> ModuleType:
    """The backend module that serves `op` on tensors of this device and dtype.

    Raises:
        ValueError: the chosen backend does not exist or cannot serve the op; the message says why.
    """
    name = choice or ENVIRONMENT_CHOICE
    if name != "auto":
        if choice is None and (wrong := _unknown("SAEKERNELS_BACKEND", name)) is not None:
            raise ValueError(wrong)
        reason = refusal(name, op, device_type, dtype)
        if reason is None:
            return load(name)
        source = "backend" if choice else "SAEKERNELS_BACKEND"
        raise ValueError(f"{source}: got {name!r}, which cannot serve {op} for {dtype} on {device_type}: {reason}")
    if device_type == "cpu" and (wrong := misset()) is not None:
        raise ValueError(wrong)
    for candidate in PREFERENCE:
        if _on_request_only(candidate) is None and refusal(candidate, op, device_type, dtype) is None:
            if candidate == "reference" and device_type not in ("cpu", "cuda"):
                _say_reference(device_type)
            return load(candidate)
    raise ValueError(f"{op}: no backend serves {dtype} on {device_type}")


@functools.cache
def _say_reference(device_type: str) -> None:
    """Once for a device: its results are exact, and slow."""
    warnings.warn(
        f"saekernels: there are no kernels for {device_type}, so the reference computes there, in plain torch: exact, "
        'but row by row; backend="reference" asks for that, and the CPU\'s kernels may be faster',
        RuntimeWarning,
        stacklevel=2,
    )


@functools.cache
def serves(op: str, device_type: str, dtype: torch.dtype) -> bool:
    """Whether any backend that may be chosen here serves `op`."""
    try:
        select(op, device_type, dtype)
    except ValueError:
        return False
    return True


def explain(device_type: str) -> list[Choice]:
    """One row per (primitive, dtype): the backend that serves it on `device_type`, and why each other one does not."""
    rows = []
    for op in PRIMITIVES:
        for dtype in DTYPES:
            try:
                chosen = select(op, device_type, dtype).NAME
            except ValueError:
                chosen = "none"
            others = {
                name: refusal(name, op, device_type, dtype) or _on_request_only(name) or f"{chosen} is preferred"
                for name in PREFERENCE
                if name != chosen
            }
            rows.append(Choice(op, device_type, str(dtype).removeprefix("torch."), chosen, others))
    return rows
