"""`saekernels info --stats`: which way rows go through the encoders, and whose code training steps run."""

from __future__ import annotations

import contextlib
import io
import logging
import textwrap
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

import saekernels
from saekernels.adapters import TOOLS, StepCounts
from saekernels.adapters.tools import adapter, installed
from saekernels.backends import cpu, registry
from saekernels.display.tables import WIDTH as COLUMNS
from saekernels.display.tables import text_table
from saekernels.errors import first_line

LATENTS, WIDTH, ROWS, K = 8192, 128, 64, 32


def kinds() -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, x, W_enc): ordinary rows, few rows, and the rows that a screen cannot certify."""
    draw = torch.Generator().manual_seed(0)
    x, W = (torch.randn(rows, WIDTH, generator=draw) for rows in (ROWS, LATENTS))
    broken = x.clone()
    broken[::2, 0] = float("nan")
    hot = W.clone()
    hot[4096:4608] = 9 * x.mean(0)
    yield "gaussian rows", x, W
    yield "a single row", x[:1], W
    yield "heavy tails", x**5, W**5
    yield "a hot tile", x, hot
    yield "all scores equal", torch.zeros_like(x), W
    yield "NaN in every other row", broken, W


def counts() -> dict[str, dict[str, int]]:
    """What each kind of rows adds to the counters of `saekernels.backends.cpu.stats`; empty without native code."""
    return {} if cpu.available() is not None else _added(cpu, torch.device("cpu"))


def gpu_counts() -> dict[str, dict[str, int]]:
    """What each kind of rows adds to the counters of `saekernels.backends.triton.stats`; empty without a GPU."""
    triton = registry.load("triton")
    if triton.available() is not None or triton.INTERPRETING:
        return {}
    return _added(triton, torch.device("cuda", torch.cuda.current_device()))


def _added(backend: ModuleType, device: torch.device) -> dict[str, dict[str, int]]:
    found = {}
    for name, x, W in kinds():
        before = backend.stats()
        saekernels.encode_topk(x.to(device), W.to(device), k=K, backend=backend.NAME)
        found[name] = {counter: value - before[counter] for counter, value in backend.stats().items()}
    return found


def step_counts() -> dict[str, StepCounts]:
    """What becomes of a first step of each training class of the installed tools, as new as they make it, by name.

    A tool that does not import, or whose objects cannot be made as they are known here, has its error for a reason.
    """
    found: dict[str, StepCounts] = {}
    for tool in filter(installed, TOOLS):
        with _quiet():
            try:
                for target, loss in adapter(tool).trials(width=16, latents=256, k=4):
                    saekernels.accelerate(target)
                    loss(torch.randn(64, 16, generator=torch.Generator().manual_seed(0))).backward()
                    found[f"{tool} {type(target).__name__}"] = saekernels.step_counts(target)
            except Exception as error:  # whatever a version of a tool that is not known raises
                found[tool] = StepCounts(0, {f"{type(error).__name__}: {first_line(error)}": 1})
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what tools print and warn of, and without our log."""
    log = logging.getLogger("saekernels")
    before, log.disabled = log.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def step_lines(found: dict[str, StepCounts]) -> list[str]:
    """One entry per training class of the installed tools: steps that were taken over, or left to it, and why."""
    text = ["", "a first training step of each class of the installed tools"] if found else []
    for name, (taken, left) in found.items():
        told = [f"{taken} taken over"] if taken else []
        told += [f"{count} left to the tool: {reason}" for reason, count in left.items()]
        line = f"  {name:46}{'; '.join(told)}"
        text += textwrap.wrap(
            line, COLUMNS, subsequent_indent=" " * 48, break_on_hyphens=False, replace_whitespace=False
        )
    return text


def lines(found: dict[str, dict[str, int]], on: str = "") -> list[str]:
    """One line per kind of rows, a column per counter. on: the device, if it has to be said."""
    if not found:
        return ["", "encoder statistics: the native backend is not usable here"]
    names = list(next(iter(found.values())))
    rows = [[kind, *(f"{row[name]:,}" for name in names)] for kind, row in found.items()]
    return ["", *text_table([f"{ROWS} rows, {LATENTS} latents, top {K}{on}", *names], rows).splitlines()]
