"""Runs the kernels of an encoder on a machine for PTX: what Triton emits for sm_80 and sm_90, with all checks.

Run as a program in a process of its own, for TRITON_INTERPRET decides what `triton.jit` means for a whole process:

    python tests/helpers/scripts/triton_emulate.py     # a JSON object for each case and each mistake
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest has it

from ptx.memory import Fault  # noqa: E402
from saekernels.backends.triton import configs, encode_topk, linear_ce_kl  # noqa: E402
from saekernels.backends.triton.encode.operands import Operands, Vectors  # noqa: E402
from saekernels.backends.triton.encode.sampling import Plan  # noqa: E402
from saekernels.backends.triton.encode.screen import screen  # noqa: E402
from saekernels.backends.triton.launch import record  # noqa: E402
from triton_aot import binary  # noqa: E402
from triton_cases import encoder, module  # noqa: E402
from triton_on_ptx import run, running  # noqa: E402

# The smallest whose quarters are a pack for each thread.
TILE = configs.Config(64, 64, 32, 4, 3)
# A line of 128 bytes, fetched by tensor maps; and two warpgroups.
TMA, PAIR = configs.Config(64, 64, 64, 4, 3, extra=("tma",)), configs.Config(128, 64, 64, 8, 3)
K = 9


class Case(NamedTuple):
    """An encoder and its inputs.

    Attributes:
        T, F, d: sizes that tiles do not divide, but for a depth of 64.
        plan: step, rank and capacity.
        special: whether some scores are NaN, infinite or equal.
        failed: how many rows have to be recomputed.
        architecture, tile, precision: what the screen is compiled for, and how it multiplies.
        columns: whether W's columns are contiguous, not its rows.
    """

    T: int
    F: int
    d: int
    dtype: torch.dtype
    activation: str = "none"
    plan: Plan = Plan(4, 6, 96)
    special: bool = False
    failed: int = 0
    architecture: int = 80
    tile: configs.Config = TILE
    precision: str = "exact"
    columns: bool = False

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, d], W [F, d] and a bias [F]."""
        x, W, bias, _ = encoder(self.T, self.F, self.d, self.dtype)
        if self.special:
            x[1], x[2], x[3, 5], W[7, 3] = 0, torch.nan, torch.inf, torch.inf
        assert bias is not None
        return x, W.t().contiguous().t() if self.columns else W, bias


ROOMY = Plan(4, 20, 256)
CASES = {
    "bf16": Case(37, 301, 64, torch.bfloat16),
    "fp16, ragged depth, magnitudes": Case(69, 251, 40, torch.float16, "abs"),
    "NaN, infinities, ties": Case(6, 301, 64, torch.bfloat16, special=True, failed=2),
    "too little room": Case(6, 301, 64, torch.bfloat16, plan=Plan(4, 40, 64), failed=6),
    "tf32": Case(13, 201, 64, torch.float32),
    "int8": Case(13, 201, 64, torch.bfloat16, plan=ROOMY, precision="screened"),
    "sm_90, bf16": Case(13, 301, 128, torch.bfloat16, architecture=90),
    "sm_90, fp16, tensor maps, ragged depth, magnitudes": Case(
        69, 251, 200, torch.float16, "abs", architecture=90, tile=TMA
    ),
    "sm_90, bf16, tensor maps": Case(13, 301, 320, torch.bfloat16, architecture=90, tile=TMA),
    "sm_90, two warpgroups, NaN, infinities, ties": Case(
        6, 301, 256, torch.bfloat16, special=True, failed=2, architecture=90, tile=PAIR
    ),
    "sm_90, W as columns": Case(13, 264, 96, torch.float16, architecture=90, columns=True, tile=TILE._replace(BN=128)),
    "sm_90, lines of 32 bytes": Case(13, 301, 48, torch.bfloat16, architecture=90, tile=TILE._replace(BK=16)),
    "sm_90, tf32": Case(13, 201, 64, torch.float32, architecture=90),
    "sm_90, e4m3": Case(13, 201, 64, torch.bfloat16, plan=ROOMY, precision="screened", architecture=90),
}

# Products by themselves, of whole numbers that all of these types have.
PRODUCTS = {
    "sm_80, bf16": Case(13, 201, 64, torch.bfloat16),
    "sm_80, tf32": Case(13, 201, 64, torch.float32),
    "sm_80, int8": Case(13, 201, 64, torch.int8),
    "sm_90, fp16": Case(13, 201, 64, torch.float16, architecture=90, tile=PAIR),
    "sm_90, tf32": Case(13, 201, 64, torch.float32, architecture=90, tile=TMA._replace(BK=32)),
    "sm_90, e4m3": Case(13, 201, 128, torch.float8_e4m3fn, architecture=90, tile=TMA._replace(BK=128)),
}


class Loss(NamedTuple):
    """A language model's head and its inputs; the vocabulary and the tokens divide into no tiles."""

    T: int
    V: int
    d: int
    dtype: torch.dtype
    softcap: float | None
    architecture: int

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Two streams [T, d], W [V, d], targets [T] of which one does not count, and a bias [V]."""
        x, W, bias, pre_bias = encoder(self.T, self.V, self.d, self.dtype)
        assert bias is not None
        assert pre_bias is not None
        targets = torch.arange(self.T) * 19 % self.V
        targets[2] = -100
        return 2 * x, 2 * x + pre_bias, W, targets, bias


LOSSES = {
    "sm_80, bf16, softcap": Loss(13, 201, 64, torch.bfloat16, 5.0, 80),
    "sm_90, bf16": Loss(13, 201, 64, torch.bfloat16, None, 90),
    "sm_90, tf32 three times, softcap": Loss(13, 201, 48, torch.float32, 5.0, 90),
}

THRESHOLDS, THRESHOLDS_OF = "thresholds", "NaN, infinities, ties"


# What mistakes are put into: five steps of the depth, so that copies overwrite what was read.
BY_COPIES = Case(37, 70, 160, torch.bfloat16)
BY_TILES = Case(37, 70, 320, torch.bfloat16, architecture=90, tile=TMA)
BY_GROUPS = BY_COPIES._replace(architecture=90)


class Mistake(NamedTuple):
    """What is done to a screen's PTX, at one match of a pattern at a time, and what has to be said of one of them."""

    pattern: str
    replacement: str
    fault: str
    case: Case = BY_COPIES


BARRIER, COPY = r"bar\.sync\s+0;", r"(cp\.async\.c[ag]\.shared\.global) \[ (%r\d+) \+ 0 \]([^;]*;)"
WAIT = r"(?s)mbarrier\.try_wait[^;]*;\s*(?:\.loc[^\n]*)?\s*@!complete bra\.uni waitLoop;"
# The two barriers around an arrival, either of which would do.
BARRIERS = r"(?s)bar\.sync\s+0;((?:(?!bar\.sync).)*?arrive\.expect_tx(?:(?!bar\.sync).)*)bar\.sync\s+0;"
MISTAKES = {
    "no barrier before a read": Mistake(BARRIER, "", "read that another warp wrote since the last barrier"),
    "no barrier after a read": Mistake(BARRIER, "", "written that another warp read since the last barrier"),
    "no wait for a copy": Mistake(r"cp\.async\.wait_group[^;]*;", "", "read while a copy into it is on its way"),
    "no copy": Mistake(COPY, "", "shared memory read that nothing was written to"),
    "a copy beside its place": Mistake(COPY, r"\1 [ \2 + 8 ]\3", "is no multiple of 16"),
    "a copy of rows that are not there": Mistake(r"setp\.lt\.s32", "setp.ne.s32", "16 bytes in no allocation"),
    "sm_90, no barrier before a product": Mistake(
        BARRIER, "", "read that another warp wrote since the last barrier", BY_GROUPS
    ),
    "sm_90, no fence between copies and a product": Mistake(
        r"fence\.proxy\.async[^;]*;", "", "no fence.proxy.async between what threads wrote", BY_GROUPS
    ),
    "sm_90, no fence of a product's registers": Mistake(
        r"wgmma\.fence[^;]*;", "", "no wgmma.fence since %r", BY_GROUPS
    ),
    "sm_90, no wait for products": Mistake(
        r"wgmma\.wait_group\.sync\.aligned\s+1;", "", "shared memory written while a product reads it", BY_GROUPS
    ),
    "sm_90, no wait for the last products": Mistake(
        r"wgmma\.wait_group\.sync\.aligned\s+0;", "", "is used while a product is under way", BY_TILES
    ),
    "sm_90, no wait for a tile": Mistake(WAIT, "", "before a wait for the mbarrier of the copy", BY_TILES),
    "sm_90, no barrier before a tile is filled again": Mistake(
        BARRIERS, r"\1", "shared memory written that another warp read since the last barrier", BY_TILES
    ),
    "sm_90, no mbarrier": Mistake(r"@%p\d+ mbarrier\.init[^;]*;", "", "no mbarrier at", BY_TILES),
    "sm_90, an mbarrier of half the bytes": Mistake(", 16384;", ", 8192;", "mbarrier", BY_TILES),
    "sm_90, an mbarrier of twice the bytes": Mistake(
        ", 16384;", ", 32768;", "phase 0 misses 0 arrivals, 16384 bytes", BY_TILES
    ),
    "sm_90, an mbarrier of two arrivals": Mistake(
        r"(mbarrier\.init[^;]*), 1;", r"\1, 2;", "phase 0 misses 1 arrivals, 0 bytes", BY_TILES
    ),
    "sm_90, a tile beside its place": Mistake(
        r"(complete_tx::bytes \[%r\d+)\]", r"\1+64]", "is no multiple of 128", BY_TILES
    ),
}
NO_MISTAKE = {"no mistake": BY_COPIES, "sm_90, no mistake": BY_GROUPS, "sm_90, tiles, no mistake": BY_TILES}
# How many matches of a pattern are tried.
TRIED = 5


def topk(case: Case) -> dict[str, Any]:
    """The whole of encode_topk: values, indices, rows recomputed, and instructions by kernel."""
    x, W, bias = case.inputs()
    plan = mock.patch.object(module("encode.encode_topk"), "plan", return_value=case.plan)
    with running(case.architecture) as launches, configs.override("screen", case.tile), plan:
        values, indices = encode_topk(x, W, bias, None, K, case.activation, precision=case.precision, out=torch.float32)
    failed = next(launch.arguments["failed"] for launch in launches if "failed" in launch.arguments)
    return {
        "values": values.tolist(),
        "indices": indices.tolist(),
        "failed": int(failed.number),
        "steps": launches.steps,
    }


def loss(case: Loss) -> list[list[float]]:
    """Cross-entropies of both streams, KL divergence and agreement of all tokens, [4, T]."""
    with running(case.architecture):
        found = linear_ce_kl(*case.inputs(), case.softcap, -100)
    return [each.tolist() for each in found]


def factors(case: Case) -> tuple[Tensor, Tensor]:
    """x [T, d] and W [F, d] of whole numbers from -15 to 15."""
    generator = torch.Generator().manual_seed(2)
    made = (torch.randint(-15, 16, (rows, case.d), generator=generator) for rows in (case.T, case.F))
    x, W = (matrix.to(case.dtype) for matrix in made)
    return x, W


def scores(case: Case) -> list[list[float]]:
    """[T, F], read from the keys of a screen that lets all pass."""
    x, W = factors(case)
    with running(case.architecture), configs.override("screen", case.tile):
        found = screen(Operands(x, W, float32_product="tf32"), torch.full((case.T,), -1e9), case.F, per_latent=False)
    values, indices = module("select").unpack(found.keys, torch.float32, relu=False)
    made = torch.full((case.T, case.F), torch.nan)
    made.scatter_(1, indices.long(), values)
    return made.tolist()


def limits(F: int) -> Tensor:
    """A threshold per latent [F], one of them NaN and one infinite."""
    made = 0.5 + torch.rand(F, generator=torch.Generator().manual_seed(1))
    made[5], made[6] = torch.nan, torch.inf
    return made


def passed(case: Case) -> list[list[int]]:
    """The latents that pass their thresholds, of each row, from the screen of encode_threshold."""
    x, W, bias = case.inputs()
    with running(case.architecture), configs.override("screen", TILE):
        found = screen(Operands(x, W, Vectors(bias.float())), limits(case.F), 512, per_latent=True)
    keys = found.keys.tolist()
    return [
        sorted(0x7FFFFFFF - ((key & 0xFFFFFFFF) >> 1) for key in row[:count])
        for row, count in zip(keys, found.counts.tolist(), strict=True)
    ]


def faults(pattern: str, replacement: str, case: Case) -> list[str]:
    """What the machine says of a screen with a mistake at each match; "" where it finds none."""
    x, W, bias, _ = encoder(case.T, case.F, case.d, case.dtype)
    assert bias is not None
    with record(case.architecture) as launches, configs.override("screen", case.tile):
        screen(Operands(x, W, Vectors(bias.float())), torch.zeros(case.T), 64, per_latent=False)
    text = binary(launches[0], case.architecture).asm["ptx"]
    said = []
    for match in list(re.finditer(pattern, text))[:TRIED]:
        broken = text[: match.start()] + match.expand(replacement) + text[match.end() :]
        try:
            run(launches[0], case.architecture, lambda _, __, broken=broken: broken)  # type: ignore[misc]
            said.append("")
        except Fault as fault:
            said.append(str(fault))
    return said


if __name__ == "__main__":
    for name, case in CASES.items():
        print(json.dumps({"name": name, **topk(case)}), flush=True)
    for name, case in PRODUCTS.items():
        print(json.dumps({"name": f"product: {name}", "scores": scores(case)}), flush=True)
    for name, head in LOSSES.items():
        print(json.dumps({"name": f"loss: {name}", "found": loss(head)}), flush=True)
    print(json.dumps({"name": THRESHOLDS, "passed": passed(CASES[THRESHOLDS_OF])}), flush=True)
    for name, mistake in MISTAKES.items():
        print(
            json.dumps({"name": name, "faults": faults(mistake.pattern, mistake.replacement, mistake.case)}), flush=True
        )
    for name, case in NO_MISTAKE.items():
        print(json.dumps({"name": name, "faults": faults("ret;", "ret;", case)}), flush=True)
