"""What runs on the machine for PTX: encoders, products, losses, and mistakes to be put into a screen's PTX."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.encode.sampling import Plan
from triton_cases import encoder

# The smallest whose quarters are a pack for each thread.
TILE = configs.Config(64, 64, 32, 4, 3)
# A line of 128 bytes, fetched by tensor maps; and two warpgroups.
TMA, PAIR = configs.Config(64, 64, 64, 4, 3, extra=("tma",)), configs.Config(128, 64, 64, 8, 3)
# Warps with roles: two warpgroups take tiles in turns, or halves of each, behind one that fetches.
PINGPONG, COOPERATIVE = (TILE._replace(ring=configs.Ring(64 * parts, 64, 64, 3, parts)) for parts in (1, 2))
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
        scaled: whether scores are compared times a scale.
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
    scaled: bool = False

    def scale(self) -> Tensor | None:
        """[F], from 0.1 to 3 in no order."""
        order = torch.randperm(self.F, generator=torch.Generator().manual_seed(3))
        return torch.linspace(0.1, 3, self.F)[order] if self.scaled else None

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
    "fp16, ragged depth, magnitudes, scaled": Case(69, 251, 40, torch.float16, "abs", scaled=True),
    "NaN, infinities, ties": Case(6, 301, 64, torch.bfloat16, special=True, failed=2),
    "too little room": Case(6, 301, 64, torch.bfloat16, plan=Plan(4, 40, 64), failed=6),
    "tf32, scaled": Case(5, 201, 64, torch.float32, failed=1, scaled=True),
    "int8": Case(13, 201, 64, torch.bfloat16, plan=ROOMY, precision="screened"),
    "sm_90, bf16": Case(13, 301, 128, torch.bfloat16, architecture=90),
    "sm_90, fp16, tensor maps, ragged depth, magnitudes": Case(
        69, 251, 200, torch.float16, "abs", architecture=90, tile=TMA
    ),
    "sm_90, bf16, tensor maps": Case(13, 301, 320, torch.bfloat16, architecture=90, tile=TMA),
    "sm_90, two warpgroups, NaN, infinities, ties": Case(
        6, 301, 256, torch.bfloat16, special=True, failed=2, architecture=90, tile=PAIR
    ),
    # Five steps of the depth, of which the last is ragged, through a ring of three.
    "sm_90, roles in ping-pong, bf16": Case(69, 301, 264, torch.bfloat16, architecture=90, tile=PINGPONG),
    "sm_90, cooperating roles, fp16, magnitudes": Case(
        69, 301, 264, torch.float16, "abs", architecture=90, tile=COOPERATIVE
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
BY_TURNS = BY_TILES._replace(d=256, F=301, tile=PINGPONG)


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
    "sm_90, roles, no wait for a tile": Mistake(WAIT, "", "shared memory read that nothing was written to", BY_TURNS),
    "sm_90, roles, no wait for room": Mistake(WAIT, "", "written that another warp read since", BY_TURNS),
    "sm_90, roles, no wait for one's turn": Mistake(WAIT, "", "deadlock: warps", BY_TURNS),
    "sm_90, roles, no barrier before room is told of": Mistake(
        r"bar\.sync\s+0, 128;", "", "written that another warp read since", BY_TURNS
    ),
    "sm_90, a tile beside its place": Mistake(
        r"(complete_tx::bytes \[%r\d+)\]", r"\1+64]", "is no multiple of 128", BY_TILES
    ),
}
NO_MISTAKE = {
    "no mistake": BY_COPIES,
    "sm_90, no mistake": BY_GROUPS,
    "sm_90, tiles, no mistake": BY_TILES,
    "sm_90, roles, no mistake": BY_TURNS,
}


# What every run of the tests tries; the others compile for minutes more (`-m slow`).
QUICK = frozenset({
    "NaN, infinities, ties", "sm_90, roles in ping-pong, bf16", "product: sm_80, bf16", "product: sm_90, fp16",
    "loss: sm_90, bf16", THRESHOLDS, "no barrier before a read", "no copy", "no mistake",
    "sm_90, roles, no wait for a tile", "sm_90, roles, no wait for room", "sm_90, roles, no mistake",
})  # fmt: skip


def factors(case: Case) -> tuple[Tensor, Tensor]:
    """x [T, d] and W [F, d] of whole numbers from -15 to 15."""
    generator = torch.Generator().manual_seed(2)
    made = (torch.randint(-15, 16, (rows, case.d), generator=generator) for rows in (case.T, case.F))
    x, W = (matrix.to(case.dtype) for matrix in made)
    return x, W


def limits(F: int) -> Tensor:
    """A threshold per latent [F], one of them NaN and one infinite."""
    made = 0.5 + torch.rand(F, generator=torch.Generator().manual_seed(1))
    made[5], made[6] = torch.nan, torch.inf
    return made
