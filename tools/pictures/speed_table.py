"""The small table beside the picture of speed: time and memory of a few cases, in Markdown."""

from __future__ import annotations

from typing import Any

from speed import CONTENDERS, fastest, machine, readable, shapes

NAMES = {"sae_topk": "TopK SAE, forward", "sae_train": "forward and backward", "decode": "decode"}


def speed_table(record: dict[str, Any], link: str) -> str:
    """Lines of README: each op at its largest shape, decode at its smallest too; the machine; the record at `link`."""
    cases = [(op, shapes(record, op)[0]) for op in NAMES] + [("decode", shapes(record, "decode")[-1])]
    lines = [
        "| (tokens, width, latents, k) | ours | torch | SAELens | sparsify |",
        "|---|---|---|---|---|",
        *(_line(record, op, shape) for op, shape in cases),
        "",
        f"{machine(record)}; times over ours, paired, and memory of a call",
        f"([record]({link})).",
    ]
    return "\n".join(lines) + "\n"


def _line(record: dict[str, Any], op: str, shape: dict[str, int]) -> str:
    found = fastest(record, op, shape)
    cells = [f"{NAMES[op]} ({', '.join(str(size) for size in shape.values())})"]
    for name in CONTENDERS:
        if name not in found:
            cells.append("")
            continue
        one = found[name]
        ratio = f"{one.ratio:.2f}x" if one.ratio >= 1 else f"**{one.ratio:.2f}x**"
        time = f"{readable(one.ms)} ms" if name == CONTENDERS[0] else ratio
        cells.append(f"{time}, {one.mib:,.0f} MiB")
    return "| " + " | ".join(cells) + " |"
