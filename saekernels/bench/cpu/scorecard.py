"""The scorecard of a CPU: one common SAE size, every installed peer, in some two minutes; in words and bars."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from saekernels.bench.cpu.record import Record, Row
from saekernels.bench.cpu.runner import Case, Settings, plan
from saekernels.bench.measure.contenders import OURS
from saekernels.bench.measure.shapes import Shape

_SIZE = Shape(1024, 768, 24576, 32)
_BUDGET, _ROUNDS = 6.0, 9
NAMES = {
    "encode": "encode, top-k",
    "threshold": "encode, threshold",
    "decode": "decode",
    "sae_topk": "SAE forward, TopK",
    "sae_jumprelu": "SAE forward, JumpReLU",
    "sae_train": "forward and backward, TopK",
    "loss": "CE and KL of two streams",
    "spliced_eval": "spliced evaluation",
}
_BAR, _LONGEST = 40, 20.0
# What only computes a part of the operation.
_PARTS = ("torch, the product alone",)


class Line(NamedTuple):
    """One operation as a person reads it. Figures are None where nothing was timed."""

    name: str
    what: str
    ours_ms: float | None
    faster: dict[str, float]
    saved_mib: float | None
    ceiling: float | None


def settings(threads: int | None = None, quick: bool = False) -> Settings:
    """What the scorecard runs."""
    return Settings(threads=threads, rounds=_ROUNDS, budget=_BUDGET, quick=quick)


def cases(chosen: Settings) -> list[Case]:
    """Every op of NAMES once, at the common size where it has one."""
    own: list[Case] = []
    seen: set[str] = set()
    for case in plan(chosen):
        name = case.op.name
        if name in seen or name not in NAMES or str(case.dtype) != "torch.float32":
            continue
        seen.add(name)
        sized = case.shape.k and name != "spliced_eval" and not chosen.quick
        own.append(case._replace(shape=_SIZE) if sized else case)
    return own


def lines(record: Record) -> list[Line]:
    """A line for each operation of a record, in the scorecard's order."""
    return [_line(rows) for rows in sorted(record.by_case().values(), key=lambda rows: list(NAMES).index(rows[0].op))]


def _line(rows: list[Row]) -> Line:
    mine = next((row for row in rows if row.contender == OURS), None)
    others = [row for row in rows if not row.contender.startswith(OURS) and row.contender not in _PARTS]
    faster = {row.contender: row.paired_ratio_to_ours for row in others if row.paired_ratio_to_ours is not None}
    dense = [row.peak_mib for row in others if row.peak_mib is not None and row.median_ms is not None]
    saved = None
    if mine is not None and mine.peak_mib is not None and dense:
        saved = max(dense) - mine.peak_mib
    ms, share = (None, None) if mine is None else (mine.median_ms, mine.share_of_bound)
    return Line(NAMES[rows[0].op], _words(rows[0].shape), ms, dict(sorted(faster.items(), key=lambda one: one[1])),
                saved, share)  # fmt: skip


def _words(shape: dict[str, int]) -> str:
    """ "1024x768 to 24576, k 32": tokens, width, latents or words, active."""
    text = f"{shape['T']}x{shape['d']} to"
    return f"{text} {shape['V']}" if "V" in shape else f"{text} {shape['F']}, k {shape['k']}"


def as_text(record: Record) -> str:
    """The table, the bars, and what was left out."""
    from saekernels.bench.cpu.terminal import heading
    from saekernels.display.tables import text_table, wrapped

    made = lines(record)
    peers = [name for name in dict.fromkeys(name for line in made for name in line.faster) if not _is_torch(name)]
    headings = ("operation", "size", "ours", "torch", *peers, "saved", "of ceiling")
    rows = [
        [
            line.name,
            line.what,
            _ms(line.ours_ms),
            _times(min((value for name, value in line.faster.items() if _is_torch(name)), default=None)),
            *(_times(line.faster.get(name)) for name in peers),
            "-" if line.saved_mib is None else f"{line.saved_mib:,.0f} MiB",
            "-" if line.ceiling is None else f"{100 * line.ceiling:.0f}%",
        ]
        for line in made
    ]
    note = (
        "Under torch and the peers: how many times longer they take (paired median; torch: its fastest way). saved: "
        "memory beyond inputs, against the largest of them. of ceiling: the least time that this machine's float32 "
        "arithmetic and memory allow, over ours; above 100 % where bf16 screens."
    )
    table = text_table(headings, rows, left=2, after=note)
    left_out = wrapped("\n".join(_left_out(record)))
    return "\n".join([wrapped("\n".join(heading(record))), "", table, *bars(made), left_out]) + "\n"


def _is_torch(name: str) -> bool:
    return name.startswith(("torch", "dense"))


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def bars(made: list[Line]) -> Iterator[str]:
    """How much longer each contender takes, as bars; ours is 1."""
    most = min(max((value for line in made for value in line.faster.values()), default=1.0), _LONGEST)
    width = max((len(name) for line in made for name in line.faster), default=0)
    for line in made:
        yield f"{line.name} ({_ms(line.ours_ms)})"
        for name, value in {"saekernels": 1.0, **line.faster}.items():
            bar = "█" * max(1, round(_BAR * min(value, most) / max(most, 1.0)))
            yield f"  {name:<{width}} {bar} {value:.1f}"


def _left_out(record: Record) -> list[str]:
    """Contenders without figures, each reason once."""
    reasons: dict[str, list[str]] = {}
    for row in record.rows:
        if row.median_ms is None:
            reasons.setdefault(f"{row.contender}: {row.status}", []).append(NAMES[row.op])
    return [f"left out: {reason} ({', '.join(ops)})" for reason, ops in reasons.items()]


def plot(record: Record) -> str:
    """The bars as SVG. Needs matplotlib."""
    from saekernels.display.charts import svg

    made = [line for line in lines(record) if line.faster]
    names = list(dict.fromkeys(name for line in made for name in line.faster))
    rows = [(line, name) for line in made for name in line.faster]

    def draw(axes: Any) -> None:
        import matplotlib

        colours = dict(zip(names, matplotlib.color_sequences["tab10"], strict=False))
        place, ticks = 0.0, []
        for line in made:
            start = place
            for name, value in line.faster.items():
                axes.barh(place, value, color=colours.get(name, "grey"), height=0.85)
                axes.text(value * 1.03, place, f"{name} {value:.1f}x", va="center", fontsize=8)
                place += 1
            ticks.append((start + place - 1) / 2)
            place += 0.8
        axes.set_yticks(ticks, [f"{line.name}\n{_ms(line.ours_ms)}" for line in made], fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.5), high * 4)
        axes.axvline(1.0, linewidth=0.8, color="black")
        axes.set_xlabel("time over that of saekernels (log)")

    return svg((8.0, 1.0 + 0.28 * len(rows)), draw)


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"
