"""Runs the kernels of an encoder on a machine for PTX: what Triton emits for sm_80 and sm_90, with all checks.

Run as a program in a process of its own, for TRITON_INTERPRET decides what `triton.jit` means for a whole process:

    python tests/helpers/gpu/triton_emulate.py             # a JSON object for each case and each mistake
    python tests/helpers/gpu/triton_emulate.py NAME...     # for those of these names
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest has it

from emulated_cases import (  # noqa: E402
    CASES,
    LOSSES,
    MISTAKES,
    NO_MISTAKE,
    PRODUCTS,
    THRESHOLDS,
    THRESHOLDS_OF,
    Case,
    K,
    Loss,
    Mistake,
    factors,
    limits,
)
from ptx.memory import Fault  # noqa: E402
from saekernels.backends.triton import configs, encode_topk, linear_ce_kl  # noqa: E402
from saekernels.backends.triton.encode.operands import Operands, Vectors  # noqa: E402
from saekernels.backends.triton.encode.screen import screen  # noqa: E402
from saekernels.backends.triton.launch import record  # noqa: E402
from triton_aot import binary  # noqa: E402
from triton_cases import module  # noqa: E402
from triton_on_ptx import run, running, small_card  # noqa: E402

# How many matches of a pattern are tried.
TRIED = 5


def topk(case: Case) -> dict[str, Any]:
    """The whole of encode_topk: values, indices, which kernels ran, and how many rows were recomputed."""
    x, W, bias = case.inputs()
    plan = mock.patch.object(module("encode.encode_topk"), "plan", return_value=case.plan)
    with running(case.architecture) as launches, configs.override("screen", case.tile), plan:
        options = {"precision": case.precision, "out": torch.float32, "scale": case.scale()}
        values, indices = encode_topk(x, W, bias, None, K, case.activation, **options)
    failed = next(launch.arguments["failed"] for launch in launches if "failed" in launch.arguments)
    return {
        "kernels": [launch.name for launch in launches],
        "values": values.tolist(),
        "indices": indices.tolist(),
        "failed": int(failed.number),
    }


def loss(case: Loss) -> list[list[float]]:
    """Cross-entropies of both streams, KL divergence and agreement of all tokens, [4, T]."""
    with running(case.architecture):
        found = linear_ce_kl(*case.inputs(), case.softcap, -100)
    return [each.tolist() for each in found]


def scores(case: Case) -> list[list[float]]:
    """[T, F], read from the keys of a screen that lets all pass."""
    x, W = factors(case)
    with running(case.architecture), configs.override("screen", case.tile):
        found = screen(Operands(x, W, float32_product="tf32"), torch.full((case.T,), -1e9), case.F, per_latent=False)
    values, indices = module("select").unpack(found.keys, torch.float32, relu=False)
    made = torch.full((case.T, case.F), torch.nan)
    made.scatter_(1, indices.long(), values)
    return made.tolist()


def passed(case: Case) -> list[list[int]]:
    """The latents that pass their thresholds, of each row, from the screen of encode_threshold."""
    x, W, bias = case.inputs()
    with running(case.architecture), configs.override("screen", case.tile):
        found = screen(Operands(x, W, Vectors(bias.float())), limits(case.F), 512, per_latent=True)
    keys = found.keys.tolist()
    return [
        sorted(0x7FFFFFFF - ((key & 0xFFFFFFFF) >> 1) for key in row[:count])
        for row, count in zip(keys, found.counts.tolist(), strict=True)
    ]


@cache
def faults(mistake: Mistake) -> list[str]:
    """What the machine says of a screen with a mistake at each match; "" where it finds none."""
    case = mistake.case
    x, W, bias = case.inputs()
    with record(case.architecture) as launches, small_card(), configs.override("screen", case.tile):
        screen(Operands(x, W, Vectors(bias.float())), torch.zeros(case.T), 64, per_latent=False)
    text = binary(launches[0], case.architecture).asm["ptx"]
    said = []
    for match in list(re.finditer(mistake.pattern, text))[:TRIED]:
        broken = text[: match.start()] + match.expand(mistake.replacement) + text[match.end() :]
        try:
            run(launches[0], case.architecture, lambda _, broken=broken: broken)  # type: ignore[misc]
            said.append("")
        except Fault as fault:
            said.append(str(fault))
    return said


def cases() -> dict[str, Callable[[], dict[str, Any]]]:
    """All there is to run, by the names that the tests have for it."""
    found: dict[str, Callable[[], dict[str, Any]]] = {name: partial(topk, case) for name, case in CASES.items()}
    for name, case in PRODUCTS.items():
        found[f"product: {name}"] = lambda case=case: {"scores": scores(case)}  # type: ignore[misc]
    for name, head in LOSSES.items():
        found[f"loss: {name}"] = lambda head=head: {"found": loss(head)}  # type: ignore[misc]
    found[THRESHOLDS] = lambda: {"passed": passed(CASES[THRESHOLDS_OF])}
    for name, mistake in MISTAKES.items():
        found[name] = lambda mistake=mistake: {"faults": faults(mistake._replace(fault=""))}  # type: ignore[misc]
    for name, case in NO_MISTAKE.items():
        found[name] = lambda case=case: {"faults": faults(Mistake("ret;", "ret;", "", case))}  # type: ignore[misc]
    return found


if __name__ == "__main__":
    every = cases()
    for name in sys.argv[1:] or every:
        print(json.dumps({"name": name, **every[name]()}), flush=True)
