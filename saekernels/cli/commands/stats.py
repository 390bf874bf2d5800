"""`saekernels info --stats`: which way rows of several kinds go through the native encoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import saekernels
from saekernels.backends import cpu
from saekernels.display.tables import text_table

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
    if cpu.available() is not None:
        return {}
    found = {}
    for name, x, W in kinds():
        before = cpu.stats()
        saekernels.encode_topk(x, W, k=K, backend="cpu")
        found[name] = {counter: value - before[counter] for counter, value in cpu.stats().items()}
    return found


def lines(found: dict[str, dict[str, int]]) -> list[str]:
    """One line per kind of rows, a column per counter."""
    if not found:
        return ["", "encoder statistics: the native backend is not usable here"]
    names = list(next(iter(found.values())))
    rows = [[kind, *(f"{row[name]:,}" for name in names)] for kind, row in found.items()]
    return ["", *text_table([f"{ROWS} rows, {LATENTS} latents, top {K}", *names], rows).splitlines()]
