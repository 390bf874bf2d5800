"""What a scorecard runs: its cases, their tensors, made on the device, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saekernels.bench.measure.shapes import Problem, Shape
from saekernels.bench.ops.gather_matmul import VECTORS

BF16, FP32 = torch.bfloat16, torch.float32


class Case(NamedTuple):
    """One op at one size. `op` is a key of `contenders.OPS`."""

    op: str
    shape: Shape
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.op} {str(self.dtype).removeprefix('torch.')} {self.shape}"


GPT2 = Shape(8192, 768, 32768, 32)
GPT2_WIDE = Shape(8192, 768, 131072, 32)
GEMMA = Shape(8192, 2304, 65536, 64)
LLAMA = Shape(8192, 4096, 131072, 64)
MILLION = Shape(2048, 4096, 1048576, 64)
LOSSES = (Shape(8192, 768, 50257), Shape(8192, 4096, 128256), Shape(8192, 2304, 256000))
ENCODERS = (
    GPT2,
    GPT2_WIDE,
    GEMMA,
    LLAMA,
    LLAMA._replace(k=128),
    LLAMA._replace(k=256),
    MILLION,
    *(shape._replace(T=T) for shape in (GEMMA, LLAMA) for T in (64, 1)),
)
FULL = (
    *(Case("encode", shape, BF16) for shape in ENCODERS),
    *(Case("encode", shape, FP32) for shape in (GPT2, GEMMA, LLAMA)),
    *(Case("decode", shape, BF16) for shape in (GPT2_WIDE, GEMMA, LLAMA, LLAMA._replace(T=64), LLAMA._replace(T=1))),
    *(Case("sae_topk", shape, BF16) for shape in (GPT2_WIDE, LLAMA)),
    *(Case("sae_train", shape, BF16) for shape in (GPT2_WIDE, GEMMA)),
    *(Case("loss", shape, BF16) for shape in LOSSES),
    Case("loss_train", LOSSES[0], BF16),
    Case("gather_matmul", Shape(256, 2304, 16384, 50), BF16),
)
QUICK = (
    Case("encode", GPT2, BF16),
    Case("encode", LLAMA, BF16),
    Case("encode", GEMMA, FP32),
    Case("decode", LLAMA, BF16),
    Case("sae_topk", GPT2_WIDE, BF16),
    Case("loss", LOSSES[0], BF16),
)


def make(case: Case, device: torch.device) -> Problem:
    """Its tensors; scores and logits are about standard normal, decoder rows uniformly random."""
    T, d, F, k = case.shape
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        made = torch.empty(shape, dtype=case.dtype, device=device)
        return made.normal_(std=scale, generator=generator)

    if case.op in ("loss", "loss_train"):
        h_p = normal(T, d)
        targets = torch.randint(F, (T,), generator=generator, device=device)
        h_q = (h_p.float() + 0.3 * normal(T, d).float()).to(case.dtype)
        return Problem(case.shape, case.dtype, (h_p, h_q, targets), {"W_U": normal(F, d, scale=d**-0.5)})
    if case.op == "decode":
        indices = torch.randint(F, (T, k), generator=generator, device=device, dtype=torch.int32)
        tokens = (normal(T, k, scale=0.3) + 3, indices)
        return Problem(case.shape, case.dtype, tokens, {"W_dec": normal(F, d, scale=d**-0.5)})
    if case.op == "gather_matmul":
        # As gradients come: those of one output together.
        vectors = normal(VECTORS, T, d).transpose(0, 1)
        indices = torch.randint(F, (T, k), generator=generator, device=device, dtype=torch.int32)
        return Problem(case.shape, case.dtype, (vectors, indices), {"W": normal(F, d, scale=d**-0.5)})
    weights = {"W_enc": normal(F, d, scale=d**-0.5), "b_enc": normal(F, scale=0.1)}
    if case.op != "encode":
        weights |= {"W_dec": normal(F, d, scale=d**-0.5), "b_dec": normal(d, scale=0.1)}
    return Problem(case.shape, case.dtype, (normal(T, d),), weights)


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        rounds: at most, per contender; at least three.
        budget: seconds of timed calls per case.
        quick: a few cases, nothing compiled by torch, two dtypes in the gate, rougher ceilings.
        ops: names of OPS, or None for all.
    """

    rounds: int = 20
    budget: float = 4.0
    quick: bool = False
    ops: tuple[str, ...] | None = None
    chosen: tuple[Case, ...] | None = None

    def cases(self) -> tuple[Case, ...]:
        """Those of the plan, or those given."""
        found = self.chosen or (QUICK if self.quick else FULL)
        return tuple(case for case in found if self.ops is None or case.op in self.ops)
