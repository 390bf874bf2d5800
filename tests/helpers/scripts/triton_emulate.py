"""Runs the kernels of an encoder on a machine for PTX: what Triton emits for sm_80, on a CPU, with all checks.

Run as a program in a process of its own, for TRITON_INTERPRET decides what `triton.jit` means for a whole process:

    python tests/helpers/scripts/triton_emulate.py     # a JSON object for each case and each mistake
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest has it

from ptx.machine import launch as emulate  # noqa: E402
from ptx.memory import Fault, Memory  # noqa: E402
from saekernels.backends.triton import configs, encode_topk  # noqa: E402
from saekernels.backends.triton.encode.operands import Operands, Vectors  # noqa: E402
from saekernels.backends.triton.encode.sampling import Plan  # noqa: E402
from saekernels.backends.triton.encode.screen import screen  # noqa: E402
from saekernels.backends.triton.launch import Launch, record  # noqa: E402
from triton_aot import binary, flat, specialise  # noqa: E402
from triton_cases import encoder, module  # noqa: E402

ARCHITECTURE = 80
# The smallest whose quarters are a pack for each thread.
TILE = configs.Config(64, 64, 32, 4, 3)
K = 9
Edit = Callable[[str, str], str]


class Case(NamedTuple):
    """An encoder and its inputs.

    Attributes:
        T, F, d: sizes that tiles do not divide, but for a depth of 64.
        plan: step, rank and capacity.
        special: whether some scores are NaN, infinite or equal.
        failed: how many rows have to be recomputed.
    """

    T: int
    F: int
    d: int
    dtype: torch.dtype
    activation: str = "none"
    plan: Plan = Plan(4, 6, 96)
    special: bool = False
    failed: int = 0

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, d], W [F, d] and a bias [F]."""
        x, W, bias, _ = encoder(self.T, self.F, self.d, self.dtype)
        if self.special:
            x[1], x[2], x[3, 5], W[7, 3] = 0, torch.nan, torch.inf, torch.inf
        assert bias is not None
        return x, W, bias


CASES = {
    "bf16": Case(37, 301, 64, torch.bfloat16),
    "fp16, ragged depth, magnitudes": Case(69, 251, 40, torch.float16, "abs"),
    "NaN, infinities, ties": Case(6, 301, 64, torch.bfloat16, special=True, failed=2),
    "too little room": Case(6, 301, 64, torch.bfloat16, plan=Plan(4, 40, 64), failed=6),
}

THRESHOLDS, THRESHOLDS_OF = "thresholds", "NaN, infinities, ties"


class Mistake(NamedTuple):
    """What is done to the screen's PTX, at one match of a pattern at a time, and what has to be said of one of them."""

    pattern: str
    replacement: str
    fault: str


BARRIER, COPY = r"bar\.sync\s+0;", r"(cp\.async\.c[ag]\.shared\.global) \[ (%r\d+) \+ 0 \]([^;]*;)"
MISTAKES = {
    "no barrier before a read": Mistake(BARRIER, "", "read that another warp wrote since the last barrier"),
    "no barrier after a read": Mistake(BARRIER, "", "written that another warp read since the last barrier"),
    "no wait for a copy": Mistake(r"cp\.async\.wait_group[^;]*;", "", "read while a copy into it is on its way"),
    "no copy": Mistake(COPY, "", "shared memory read that nothing was written to"),
    "a copy beside its place": Mistake(COPY, r"\1 [ \2 + 8 ]\3", "is no multiple of 16"),
    "a copy of rows that are not there": Mistake(r"setp\.lt\.s32", "setp.ne.s32", "16 bytes in no allocation"),
}
# How many matches of a pattern are tried.
TRIED = 5


def run(launches: list[Launch], edit: Edit = lambda name, ptx: ptx) -> dict[str, int]:
    """Run launches whose tensors are the CPU's, one after another, and leave in them what a GPU would.

    Args:
        edit: makes of a kernel's name and PTX the PTX that is run.

    Returns:
        The instructions that each kernel took.
    """
    memory = Memory()
    tensors = {
        value.untyped_storage().data_ptr(): value
        for launch in launches
        for _, value in flat(launch.arguments)
        if isinstance(value, Tensor)
    }
    addresses = {pointer: memory.put(_bytes(tensor).numpy()) for pointer, tensor in tensors.items()}
    steps = {}
    for launch in launches:
        made = binary(launch, ARCHITECTURE)
        given, signature = dict(flat(launch.arguments)), flat(specialise(launch, ARCHITECTURE)[0])
        parameters = [_parameter(given[name], addresses) for name, kind in signature if kind != "constexpr"]
        text, threads = edit(launch.name, made.asm["ptx"]), 32 * launch.num_warps
        steps[launch.name] = emulate(text, memory, launch.grid, threads, made.metadata.shared, parameters)
    for pointer, tensor in tensors.items():
        content = _bytes(tensor)
        content.copy_(torch.from_numpy(memory.bytes[addresses[pointer] :][: len(content)]))
    return steps


def _parameter(value: Any, addresses: dict[int, int]) -> int:
    if not isinstance(value, Tensor):
        return int(value)
    return addresses[value.untyped_storage().data_ptr()] + value.storage_offset() * value.element_size()


def _bytes(tensor: Tensor) -> Tensor:
    """The whole storage of a tensor."""
    return torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage())


def topk(case: Case, edit: Edit = lambda name, ptx: ptx) -> dict[str, Any]:
    """The whole of encode_topk: values, indices, rows recomputed, and instructions by kernel."""
    x, W, bias = case.inputs()
    plan = mock.patch.object(module("encode.encode_topk"), "plan", return_value=case.plan)
    with record(ARCHITECTURE) as launches, configs.override("screen", TILE), plan:
        values, indices = encode_topk(x, W, bias, None, K, case.activation, out=torch.float32)
    steps = run(launches, edit)
    failed = next(launch.arguments["failed"] for launch in launches if launch.name == "certify_kernel")
    return {
        "values": values.tolist(),
        "indices": indices.tolist(),
        "failed": int(failed.number),
        "steps": steps,
    }


def limits(F: int) -> Tensor:
    """A threshold per latent [F], one of them NaN and one infinite."""
    made = 0.5 + torch.rand(F, generator=torch.Generator().manual_seed(1))
    made[5], made[6] = torch.nan, torch.inf
    return made


def passed(case: Case) -> list[list[int]]:
    """The latents that pass their thresholds, of each row, from the screen of encode_threshold."""
    x, W, bias = case.inputs()
    with record(ARCHITECTURE) as launches, configs.override("screen", TILE):
        found = screen(Operands(x, W, Vectors(bias.float())), limits(case.F), 512, per_latent=True)
    run(launches)
    keys = found.keys.tolist()
    return [
        sorted(0x7FFFFFFF - ((key & 0xFFFFFFFF) >> 1) for key in row[:count])
        for row, count in zip(keys, found.counts.tolist(), strict=True)
    ]


def faults(pattern: str, replacement: str) -> list[str]:
    """What the machine says of a screen with a mistake at each match; "" where it finds none.

    The depth is of five steps, so that copies overwrite what was read.
    """
    x, W, bias, _ = encoder(37, 70, 160, torch.bfloat16)
    assert bias is not None
    with record(ARCHITECTURE) as launches, configs.override("screen", TILE):
        screen(Operands(x, W, Vectors(bias.float())), torch.zeros(37), 64, per_latent=False)
    text = binary(launches[0], ARCHITECTURE).asm["ptx"]
    said = []
    for match in list(re.finditer(pattern, text))[:TRIED]:
        broken = text[: match.start()] + match.expand(replacement) + text[match.end() :]
        try:
            run(launches, lambda _, __, broken=broken: broken)  # type: ignore[misc]
            said.append("")
        except Fault as fault:
            said.append(str(fault))
    return said


if __name__ == "__main__":
    for name, case in CASES.items():
        print(json.dumps({"name": name, **topk(case)}), flush=True)
    print(json.dumps({"name": THRESHOLDS, "passed": passed(CASES[THRESHOLDS_OF])}), flush=True)
    for name, mistake in MISTAKES.items():
        print(json.dumps({"name": name, "faults": faults(mistake.pattern, mistake.replacement)}), flush=True)
    print(json.dumps({"name": "no mistake", "faults": faults("ret;", "ret;")}), flush=True)
