"""Where a record comes from: commit, versions, CPU."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from saekernels._version import __version__
from saekernels.backends import registry
from saekernels.bench.measure.peers import PACKAGES

# What decides which kernels run here.
FLAGS = ("f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
_ROOT = Path(__file__).resolve().parents[3]
_L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


def commit() -> dict[str, Any]:
    """The checkout's commit, and whether files differ from it; None for both outside one."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != _ROOT:
        # Installed inside somebody else's checkout, perhaps; its commit says nothing of us.
        return {"commit": None, "dirty": None}
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions(more: tuple[str, ...] = ()) -> dict[str, str | None]:
    """Of this package, of what computes, of the peers, and of `more`; None for one that is not installed."""
    found: dict[str, str | None] = {"saekernels": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", *PACKAGES, *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def cpu() -> dict[str, Any]:
    """Its name, those of `FLAGS` that it has, bytes of its last cache, and what runs on it."""
    info = _cpuinfo()
    present = info.get("flags", "").split()
    native = registry.load("cpu")
    usable = native.available() is None
    return {
        "model": info.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in present],
        "cache_bytes": cache_bytes(),
        "threads": torch.get_num_threads(),
        "backend": "cpu" if usable else f"reference (cpu: {native.available()})",
        "simd_level": native.simd_level() if usable else None,
        "screening": native.screening() if usable else None,
    }


def fallback_rows() -> int:
    """Rows that any fallback of the native and the GPU encoders took since the process began; waits for the GPU."""
    native = registry.load("cpu")
    on_cpu = native.stats()["fallback_rows"] if native.available() is None else 0
    return int(on_cpu + registry.load("triton").stats()["fallback_rows"])


def _cpuinfo() -> dict[str, str]:
    """The fields of the first processor; empty where there is no /proc."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def cache_bytes() -> int | None:
    """The size of the last cache; None if unknown."""
    try:
        text = _L3.read_text().strip()
    except OSError:
        return None
    units = {"K": 2**10, "M": 2**20}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else None
