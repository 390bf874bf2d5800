"""How long SAELens, sparsify and torch take over ours: bars from a record of `saekernels bench cpu`."""

from __future__ import annotations

from typing import Any

from drawing import Drawing, Theme

WIDTH = 830
OPS = {"sae_topk": "TopK SAE, forward", "sae_train": "TopK SAE, forward and backward"}
PANEL, LABEL, LENGTH = 415, 16, 290  # a panel's width, its margin, its longest bar
TOP, BAR, GROUP = 112, 13, 84


def fastest(record: dict[str, Any], op: str, shape: dict[str, int]) -> dict[str, tuple[float, float]]:
    """Contender -> (median ms, paired ratio to ours), float32; torch is its fastest way that gives the answer."""
    found: dict[str, tuple[float, float]] = {}
    for row in record["rows"]:
        if (row["op"], row["shape"], row["dtype"], row["status"]) != (op, shape, "float32", "ok"):
            continue
        name = row["contender"]
        if name.startswith("torch") and "product alone" not in name:
            name = "torch"
        one = (row["median_ms"], row["paired_ratio_to_ours"])
        if name in ("saekernels", "torch", "SAELens", "sparsify") and one[1] <= found.get(name, one)[1]:
            found[name] = one
    return found


def shapes(record: dict[str, Any], op: str) -> list[dict[str, int]]:
    """The shapes at which every contender of the picture has a time, the most tokens first."""
    all_shapes = {tuple(row["shape"].items()): row["shape"] for row in record["rows"] if row["op"] == op}
    whole = [shape for shape in all_shapes.values() if len(fastest(record, op, shape)) == 4]
    return sorted(whole, key=lambda shape: (-shape["T"], shape["d"]))


def speed(record: dict[str, Any], theme: Theme) -> str:
    """The picture of a record (schema 1): one panel per op, one group of bars per shape."""
    panels = {op: shapes(record, op) for op in OPS}
    longest = max(
        ratio for op, own in panels.items() for shape in own for _, ratio in fastest(record, op, shape).values()
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
            words.append(f"{OPS[op]} {_shape(shape)}: " + ", ".join(f"{n} {t:.1f} ms" for n, (t, _) in times.items()))
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


def _group(
    drawing: Drawing, x: float, y: float, shape: dict[str, int], times: dict[str, tuple[float, float]], scale: float
) -> None:
    drawing.text(x, y + 4, _shape(shape), size=12, colour=drawing.theme.muted)
    for place, name in enumerate(("saekernels", "torch", "SAELens", "sparsify")):
        time, ratio = times[name]
        top = y + 11 + place * (BAR + 1)
        drawing.rectangle(x, top, scale * ratio, BAR, _colour(name, drawing.theme), radius=2)
        ours = name == "saekernels"
        label = f"{_readable(time)} ms" if ours else f"{ratio:.1f}x"
        drawing.text(x + scale * ratio + 6, top + 10.5, label, size=11.5, bold=ours)


def _shape(shape: dict[str, int]) -> str:
    tokens = "1 token" if shape["T"] == 1 else f"{shape['T']:,} tokens"
    return f"{tokens}, width {shape['d']:,}, {shape['F']:,} latents, k = {shape['k']}"


def _readable(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}"


def _colour(name: str, theme: Theme) -> str:
    return {"saekernels": theme.orange, "torch": theme.blue, "SAELens": theme.grey, "sparsify": theme.green}[name]
