"""Do the tools' own trainers train alike, plain and accelerated: 200 steps of each class, and a run that is resumed.

    pip install '.[eval,peers]' dictionary_learning==0.1.0
    python benchmarks/trainers/train_side_by_side.py
    python benchmarks/trainers/train_side_by_side.py --tools sparsify --classes topk,groupmax --steps 40

Both ways begin with the same weights, at the bundled model's activations. Of each class are printed:

- the largest relative difference of the losses of a step, and of the tool's own run whose weights are changed in the
  last bit before it, beside which the first is to be seen;
- the same from those changed weights both ways: where a choice fell within rounding, another beginning has another;
- latents that were dead, and in how many steps their number differs;
- of a run that was stopped in the middle and resumed in a new trainer from what the tool saves: the largest relative
  difference from the tool's own that is resumed from the very same files, the same of weights changed in the last bit,
  and the difference from the run that was never stopped;
- steps that were taken over.

`--json` writes all of it.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import saekernels as sk
from saekernels.bench.cpu.record import now
from saekernels.bench.measure import machine
from saekernels.cli.options.arguments import Parser, at_least, names_of, not_empty
from saekernels.files.atomic import write_whole
from saekernels.files.checked import check_writable
from side_by_side_runs import TOOLS, Size, Step, change, made, rows_of

ULP = torch.finfo(torch.float32).eps
# Whether it is accelerated, and by how much weights are changed before it.
WAYS = ((False, 0.0), (True, 0.0), (False, ULP), (True, ULP))


def main(argv: list[str]) -> list[dict[str, Any]]:
    given = _parser().parse_args(argv)
    if given.json:
        check_writable(given.json, "--json")
    size = Size(given.tokens, given.latents, given.k, given.steps, given.dead_after)
    rows = rows_of(size)
    record = {
        "date": now(),
        **machine.commit(),
        "versions": machine.versions(),
        "machine": machine.cpu(),
        "command": shlex.join(["python", "benchmarks/trainers/train_side_by_side.py", *argv]),
        "settings": {**size._asdict(), "width": rows.shape[1], "nudge": ULP},
    }
    found = []
    for tool in given.tools:
        for kind in [one for one in TOOLS[tool].KINDS if not given.classes or one in given.classes]:
            started = time.perf_counter()
            found.append(compared(tool, kind, rows, size))
            print(line(found[-1]), f"({time.perf_counter() - started:.0f} s)", flush=True)
            if given.json:
                write_whole(given.json, (json.dumps({**record, "classes": found}, indent=1) + "\n").encode())
    return found


def compared(tool: str, kind: str, rows: torch.Tensor, size: Size) -> dict[str, Any]:
    """One class: plain, accelerated, changed in the last bit, and resumed."""
    half = size.steps // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [made(tool, kind, rows, size, folder / "whole", fast=fast, nudge=nudge) for fast, nudge in WAYS]
        ours, curves = runs[1], [run.go(0, size.steps) for run in runs]
        stopped = made(tool, kind, rows, size, folder, fast=True)
        stopped.go(0, half)
        stopped.save(folder)
        resumed = []
        for fast, nudge in WAYS:
            run = made(tool, kind, rows, size, folder / "on", fast=fast)
            run.resume(folder)
            torch.manual_seed(0)
            change(run.module, nudge)
            resumed.append(run.go(half, size.steps)[half - size.steps :])
    counts = sk.step_counts(ours.trainer)
    own, mine, other, mine_other = curves
    return {
        "tool": tool,
        "class": kind,
        "loss": [own[0].loss, own[-1].loss],
        "difference": difference(mine, own),
        "difference_of_last_bit": difference(other, own),
        "difference_from_there": difference(mine_other, other),
        "dead": None if own[0].dead is None else [max(one.dead or 0 for one in own), own[-1].dead],
        "steps_with_other_dead": sum(one.dead != two.dead for one, two in zip(mine, own, strict=True)),
        "resumed": {
            "difference": difference(resumed[1], resumed[0]),
            "difference_of_last_bit": difference(resumed[2], resumed[0]),
            "difference_from_there": difference(resumed[3], resumed[2]),
            "difference_from_unbroken": difference(resumed[1], mine[half:]),
            "steps_with_other_dead": sum(one.dead != two.dead for one, two in zip(*resumed[:2], strict=True)),
        },
        "taken": counts.taken,
        "own_steps": counts.left,
    }


def difference(some: Sequence[Step], others: Sequence[Step]) -> float:
    """The largest of a step's losses, relative."""
    return max(abs(one.loss - other.loss) / abs(other.loss) for one, other in zip(some, others, strict=True))


def line(found: dict[str, Any]) -> str:
    again = found["resumed"]
    dead = "-" if found["dead"] is None else f"{found['dead'][0]}, last {found['dead'][1]}"
    return (
        f"{found['tool']} {found['class']}: loss {found['loss'][0]:.4g} to {found['loss'][1]:.4g}, "
        f"differs by {found['difference']:.1e} (by the last bit {found['difference_of_last_bit']:.1e}, "
        f"from there {found['difference_from_there']:.1e}); dead {dead}, "
        f"other in {found['steps_with_other_dead']} steps; resumed {again['difference']:.1e} "
        f"({again['difference_of_last_bit']:.1e}, from there {again['difference_from_there']:.1e}), "
        f"from unbroken {again['difference_from_unbroken']:.1e}, "
        f"other in {again['steps_with_other_dead']}; "
        f"taken over {found['taken']}"
    )


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    group = parser.group("what is trained")
    tools = tuple(TOOLS)
    group.add_argument(
        "--tools", metavar="NAME,...", type=names_of(tools), default=tools, help=f"of {', '.join(tools)}"
    )
    classes = tuple(dict.fromkeys(kind for tool in tools for kind in TOOLS[tool].KINDS))
    about = f"of {', '.join(classes)}; by default all that the tools have"
    group.add_argument("--classes", metavar="NAME,...", type=names_of(classes), default=(), help=about)
    group.add_argument("--tokens", metavar="N", type=at_least(128), default=128, help="of a step")
    group.add_argument("--latents", metavar="N", type=at_least(64), default=512, help="of each SAE")
    group.add_argument("--k", metavar="N", type=at_least(1), default=16, help="of TopK and its kin")
    group.add_argument("--steps", metavar="N", type=at_least(4), default=200, help="of each run")
    group.add_argument("--dead-after", metavar="STEPS", type=at_least(1), default=20, help="of silence")
    group.add_argument("--json", metavar="PATH", type=not_empty, help="write the figures")
    parser.set_defaults(command="train_side_by_side")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
