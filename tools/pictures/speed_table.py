"""The small table beside the picture of speed: time and memory of a few cases, in Markdown."""

from __future__ import annotations

from typing import Any

from speed import CONTENDERS, fastest, machine, readable, shapes

NAMES = {"sae_topk": "TopK SAE, forward", "sae_train": "forward and backward", "decode": "decode"}


def speed_table(record: dict[str, Any], link: str) -> str:
    """Lines of README: ops at their largest shape, decode at its smallest too, the first's memory; machine, record."""
    first, *rest = [(op, shapes(record, op)[0]) for op in NAMES] + [("decode", shapes(record, "decode")[-1])]
    lines = [
        "| (tokens, width, latents, k) | ours | torch | SAELens | sparsify |",
        "|---|---|---|---|---|",
        _times(record, *first),
        _memory(record, *first),
        *(_times(record, *case) for case in rest),
        "",
        f"{machine(record)}; times over ours, paired",
        f"([record]({link})).",
    ]
    return "\n".join(lines) + "\n"


def _times(record: dict[str, Any], op: str, shape: dict[str, int]) -> str:
    found = fastest(record, op, shape)
    cells = [f"{NAMES[op]} ({', '.join(str(size) for size in shape.values())})"]
    for name in CONTENDERS:
        if name not in found:
            cells.append("")
        elif name == CONTENDERS[0]:
            cells.append(f"{readable(found[name].ms)} ms")
        else:
            ratio = found[name].ratio
            cells.append(f"{ratio:.2f}x" if ratio >= 1 else f"**{ratio:.2f}x**")
    return _row(cells)


def _memory(record: dict[str, Any], op: str, shape: dict[str, int]) -> str:
    found = fastest(record, op, shape)
    return _row(["its memory beyond inputs, MiB", *(f"{found[name].mib:,.0f}" for name in CONTENDERS)])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
