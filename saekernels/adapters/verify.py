"""An object of an unknown version takes over only once it gives what the tool's own forward gives."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.adapters.errors import NotAccelerated, UnknownVersion
from saekernels.adapters.patch import State, install, uninstall
from saekernels.sae.module import SAE

_ROWS = 8
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}


def installed(package: str) -> str:
    """The version of a distribution, or "unknown"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def is_known(version: str, known: Sequence[str]) -> bool:
    """Whether a version is one of these, or a patch release of one."""
    return any(version == one or version.startswith(f"{one}.") for one in known)


def warn_of_version(package: str, version: str, known: Sequence[str]) -> None:
    """UnknownVersion, with what it means."""
    warnings.warn(
        f"{package} {version} is not one that saekernels was checked against ({', '.join(known)}); the object was "
        "compared with its own forward on a small batch, and agrees",
        UnknownVersion,
        stacklevel=4,
    )


def install_checked(module: Any, state: State) -> None:
    """Patch an object and compare it with what it gave before on random rows; raise, unpatched, if they differ."""
    x = state.trial(module)
    if x is None:
        x = _rows(state.weights.of(state.sae_of(module)).W_enc)
    name = type(module).__name__
    sample = state.sample or (lambda one, rows: one(rows))
    try:
        with torch.no_grad():
            theirs = _output(sample(module, x))
            install(module, state)
            ours = _output(sample(module, x))
    except Exception as error:
        uninstall(module)
        state.weights.restore(state.sae_of(module))
        raise NotAccelerated(f"{name}: the small batch failed: {error}") from error
    try:
        _require_same(name, ours, theirs, x.dtype)
    except NotAccelerated:
        uninstall(module)
        raise


def compare(module: nn.Module, sae: SAE) -> None:
    """NotAccelerated unless an SAE gives what an object itself gives on random rows."""
    x = _rows(sae.W_enc)
    name = type(module).__name__
    try:
        with torch.no_grad():
            theirs, ours = _output(module(x)), _output(sae(x))
    except Exception as error:
        raise NotAccelerated(f"{name}: the small batch failed: {error}") from error
    _require_same(name, ours, theirs, x.dtype)


def _rows(W_enc: Tensor) -> Tensor:
    return torch.randn(_ROWS, W_enc.shape[1], generator=torch.Generator().manual_seed(0)).to(W_enc)


def _require_same(name: str, ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    bound = _TOLERANCE.get(dtype, 1e-4)
    scale = float(theirs.abs().max())
    difference = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
    if not difference <= bound * max(scale, 1.0):
        raise NotAccelerated(
            f"{name}: on a small batch the result differs from its own by {difference:.3g} (outputs up to {scale:.3g}"
            "), so its maths is not the one that is known"
        )


def _output(found: Any) -> Tensor:
    """The reconstruction, of tools that return more."""
    value = found[0] if isinstance(found, tuple) else found
    return value.detach().float()
