"""How long SAELens, sparsify and torch take over ours: bars from a record of `saekernels bench cpu`."""

from __future__ import annotations

from typing import Any, NamedTuple

from drawing import Drawing, Theme

WIDTH = 830
CONTENDERS = ("saekernels", "torch", "SAELens", "sparsify")
OPS = {"sae_topk": "TopK SAE, forward", "sae_train": "TopK SAE, forward and backward"}
PANEL, LABEL, LENGTH = 415, 16, 290  # a panel's width, its margin, its longest bar
TOP, BAR, GROUP = 112, 13, 84


class Timed(NamedTuple):
    """One contender at one case: median time in ms, paired ratio to ours, memory of a call in MiB."""

    ms: float
    ratio: float
    mib: float


def fastest(record: dict[str, Any], op: str, shape: dict[str, int]) -> dict[str, Timed]:
    """The contenders of one case, float32, by name; torch is its fastest way that gives the answer."""
    found: dict[str, Timed] = {}
    for row in record["rows"]:
        if (row["op"], row["shape"], row["dtype"], row["status"]) != (op, shape, "float32", "ok"):
            continue
        name = row["contender"]
        if name.startswith("torch") and "product alone" not in name:
            name = "torch"
        one = Timed(row["median_ms"], row["paired_ratio_to_ours"], row["peak_mib"])
        if name in CONTENDERS and one.ratio <= found.get(name, one).ratio:
            found[name] = one
    return found


def shapes(record: dict[str, Any], op: str) -> list[dict[str, int]]:
    """The shapes of an op at which as many contenders as anywhere have a time, the most tokens first."""
    own = {tuple(row["shape"].items()): row["shape"] for row in record["rows"] if row["op"] == op}
    most = max((len(fastest(record, op, shape)) for shape in own.values()), default=0)
    whole = [shape for shape in own.values() if len(fastest(record, op, shape)) == most]
    return sorted(whole, key=lambda shape: (-shape["T"], shape["d"]))


def speed(record: dict[str, Any], theme: Theme) -> str:
    """The picture of a record (schema 1): one panel per op, one group of bars per shape."""
    panels = {op: shapes(record, op) for op in OPS}
    longest = max(
        one.ratio for op, own in panels.items() for shape in own for one in fastest(record, op, shape).values()
    )
    height = TOP + GROUP * max(map(len, panels.values())) + 6
    drawing = Drawing(WIDTH, height, theme)
    _headings(drawing, record)
    words = []
    for place, (op, own) in enumerate(panels.items()):
        x = place * PANEL + LABEL
        drawing.text(x, 88, OPS[op], size=15, bold=True)
        for group, shape in enumerate(own):
            times = fastest(record, op, shape)
            _group(drawing, x, TOP + group * GROUP, shape, times, LENGTH / longest)
            words.append(
                f"{OPS[op]} {_shape(shape)}: " + ", ".join(f"{name} {one.ms:.1f} ms" for name, one in times.items())
            )
    return drawing.render("Times of torch, SAELens and sparsify over those of saekernels", "; ".join(words))


def machine(record: dict[str, Any]) -> str:
    """The machine in words, as the record knows it."""
    own = record["machine"]
    level = own["simd_level"].upper().replace("_", "-")
    model = own["model"]
    return f"{own['threads']} threads of {'an' if model[0] in 'AEIOU' else 'a'} {model} ({level}), float32, cold caches"


def _headings(drawing: Drawing, record: dict[str, Any]) -> None:
    theme = drawing.theme
    drawing.text(LABEL, 28, "Time per call, ours = 1", size=17, bold=True)
    drawing.text(LABEL, 50, machine(record), colour=theme.muted)
    for x, name in ((462, "saekernels"), (572, "torch"), (642, "SAELens"), (732, "sparsify")):
        drawing.rectangle(x, 17, 12, 12, _colour(name, theme), radius=2)
        drawing.text(x + 18, 28, name)
    drawing.text(WIDTH - LABEL, 50, "torch: its fastest way", colour=theme.muted, anchor="end")
    drawing.line(LABEL, 64, WIDTH - LABEL, 64, theme.line)


def _group(drawing: Drawing, x: float, y: float, shape: dict[str, int], times: dict[str, Timed], scale: float) -> None:
    drawing.text(x, y + 4, _shape(shape), size=12, colour=drawing.theme.muted)
    for place, name in enumerate(name for name in CONTENDERS if name in times):
        one = times[name]
        top = y + 11 + place * (BAR + 1)
        drawing.rectangle(x, top, scale * one.ratio, BAR, _colour(name, drawing.theme), radius=2)
        ours = name == CONTENDERS[0]
        label = f"{readable(one.ms)} ms" if ours else f"{one.ratio:.1f}x"
        drawing.text(x + scale * one.ratio + 6, top + 10.5, label, size=11.5, bold=ours)


def _shape(shape: dict[str, int]) -> str:
    tokens = "1 token" if shape["T"] == 1 else f"{shape['T']:,} tokens"
    return f"{tokens}, width {shape['d']:,}, {shape['F']:,} latents, k = {shape['k']}"


def readable(ms: float) -> str:
    """Milliseconds with three digits or all that are whole."""
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}"


def _colour(name: str, theme: Theme) -> str:
    return {"saekernels": theme.orange, "torch": theme.blue, "SAELens": theme.grey, "sparsify": theme.green}[name]
