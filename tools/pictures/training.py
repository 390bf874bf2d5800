"""A training in two panels: the loss with and without SAEs, and what domains share of them, from first to last step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from drawing import Drawing, Theme

WIDTH, HEIGHT = 830, 366
TOP, BOTTOM = 96, 286
LEFT, RIGHT = (52, 360), (476, 784)
SITE = "model.layers.2"


def training(record: dict[str, Any], theme: Theme) -> str:
    """The picture of a record of `saekernels over`."""
    drawing = Drawing(WIDTH, HEIGHT, theme)
    rows = record["checkpoints"]
    clean = [row["losses"]["clean_ce"] for row in rows]
    spliced = [row["losses"]["targets"]["all"]["spliced_ce"] for row in rows]
    shares = [row["reuse"][SITE]["effect"] for row in rows]
    text = record["text"]
    loss = _panel(drawing, LEFT, (0, 2 * math.ceil(max(spliced) / 2)), 2, rows, lambda tick: f"{tick:g}")
    _line(drawing, LEFT, loss, clean, theme.blue)
    _line(drawing, LEFT, loss, spliced, theme.orange)
    _end(drawing, LEFT, loss, clean[-1], "alone", theme.blue)
    _end(drawing, LEFT, loss, spliced[-1], "with SAEs", theme.orange)
    share = _panel(drawing, RIGHT, (0, 0.8), 0.2, rows, lambda tick: f"{100 * tick:.0f} %")
    for at, one in enumerate(shares):
        low, high = one["general"]["ci95"]
        x = _x(RIGHT, at, len(rows))
        drawing.line(x, share(low), x, share(high), theme.ink)
    for name, colour in (("ceiling", theme.green), ("chance", theme.grey), ("general", theme.blue)):
        values = [one[name]["value"] for one in shares]
        _line(drawing, RIGHT, share, values, colour)
        _end(drawing, RIGHT, share, values[-1], name, colour)
    drawing.text(16, 32, "A training, with SAEs of its own at every checkpoint", size=17, bold=True)
    layers = len(rows[0]["reuse"])
    drawing.text(16, 56, "cross-entropy, nats per token", bold=True)
    drawing.text(16, 74, f"of the model, and with SAEs at all {layers} layers", colour=theme.muted)
    drawing.text(RIGHT[0] - 36, 56, "effect that two domains share", bold=True)
    drawing.text(RIGHT[0] - 36, 74, "layer 2, 95 % intervals; ceiling: two halves of one domain", colour=theme.muted)
    source = f"{text['tokens']:,} held-out tokens of {text['documents']} documents; checkpoints at equal distances"
    drawing.text(16, HEIGHT - 8, source, colour=theme.muted)
    listed = "; ".join(
        f"{row['seen']:,} tokens: {a:.2f}, {b:.2f} with SAEs" for row, a, b in zip(rows, clean, spliced, strict=True)
    )
    title = f"Loss from {clean[0]:.2f} to {clean[-1]:.2f}, with SAEs to {spliced[-1]:.2f}"
    return drawing.render(title, listed)


def _panel(
    drawing: Drawing,
    sides: tuple[int, int],
    ends: tuple[float, float],
    step: float,
    rows: Sequence[dict[str, Any]],
    written: Callable[[float], str],
) -> Callable[[float], float]:
    """Axes; gives what turns a value into pixels."""
    theme, (low, high) = drawing.theme, ends

    def scale(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    for number in range(round((high - low) / step) + 1):
        tick = low + number * step
        drawing.line(sides[0], scale(tick), sides[1], scale(tick), theme.line)
        drawing.text(sides[0] - 6, scale(tick) + 4, written(tick), size=12, colour=theme.muted, anchor="end")
    for at in range(0, len(rows), 2):
        x = _x(sides, at, len(rows))
        drawing.text(x, BOTTOM + 18, _seen(rows[at]["seen"]), size=12, colour=theme.muted, anchor="middle")
    drawing.text(sum(sides) / 2, BOTTOM + 40, "tokens seen", colour=theme.muted, anchor="middle")
    return scale


def _x(sides: tuple[int, int], at: int, count: int) -> float:
    return sides[0] + 8 + at * (sides[1] - sides[0] - 70) / (count - 1)


def _line(
    drawing: Drawing, sides: tuple[int, int], scale: Callable[[float], float], values: Sequence[float], colour: str
) -> None:
    points = [(_x(sides, at, len(values)), scale(value)) for at, value in enumerate(values)]
    drawing.path("M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points), colour, width=2)
    for x, y in points:
        drawing.circle(x, y, 2.5, colour)


def _end(
    drawing: Drawing, sides: tuple[int, int], scale: Callable[[float], float], value: float, name: str, colour: str
) -> None:
    drawing.text(sides[1] - 56, scale(value) + 4, name, colour=colour)


def _seen(tokens: int) -> str:
    """0, 16 k, 1.0 M."""
    if tokens >= 1_000_000:
        return f"{tokens / 1e6:.1f} M"
    return f"{tokens / 1e3:.0f} k" if tokens >= 1000 else str(tokens)
