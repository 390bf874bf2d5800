"""What the kernels are to reach on an H200, each a ratio of two rows of a record, or of the predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from saekernels.bench.gpu import cases
from saekernels.bench.gpu.cases import Case
from saekernels.bench.gpu.contenders import PRODUCTS, SCREENED
from saekernels.bench.measure.contenders import CHUNKED, OURS
from saekernels.bench.measure.shapes import Shape
from saekernels.bench.ops.decode import BAG
from saekernels.bench.ops.encode import PRODUCT
from saekernels.bench.ops.sae import SAELENS, SPARSIFY

BF16, FP32 = torch.bfloat16, torch.float32


class Target(NamedTuple):
    """`ours` takes at most `limit` x the time of `other` (at_most), or `other` at least `limit` x that of `ours`."""

    case: Case
    ours: str
    other: str
    limit: float
    at_most: bool

    def text(self) -> str:
        """In words."""
        if self.at_most:
            return f"{self.ours} at most {self.limit:g} x {self.other}"
        return f"{self.ours} at least {self.limit:g} x faster than {self.other}"

    def ratio(self, milliseconds: Callable[[Case, str], float | None]) -> float | None:
        """Reached: time over time in the direction of the limit; None where either is unknown."""
        mine, theirs = milliseconds(self.case, self.ours), milliseconds(self.case, self.other)
        if mine is None or theirs is None or mine <= 0 or theirs <= 0:
            return None
        return mine / theirs if self.at_most else theirs / mine

    def met(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio <= self.limit if self.at_most else ratio >= self.limit


def _encode(shape: Shape, dtype: torch.dtype = BF16) -> Case:
    return Case("encode", shape, dtype)


# "the model" stands for the time that the cost model gives decode on the ceilings measured.
MODEL = "the model"
TARGETS = (
    Target(_encode(cases.GPT2), OURS, PRODUCT, 1.3, True),
    Target(_encode(cases.GPT2_WIDE), OURS, PRODUCT, 1.3, True),
    Target(_encode(cases.GEMMA), OURS, PRODUCT, 1.15, True),
    Target(_encode(cases.LLAMA), OURS, PRODUCT, 1.15, True),
    Target(_encode(cases.MILLION), OURS, PRODUCT, 1.15, True),
    Target(_encode(cases.GPT2_WIDE), OURS, CHUNKED, 2, False),
    Target(_encode(cases.LLAMA), OURS, CHUNKED, 1.3, False),
    Target(_encode(cases.GEMMA, FP32), OURS, CHUNKED, 4, False),
    Target(_encode(cases.LLAMA, FP32), OURS, CHUNKED, 4, False),
    Target(_encode(cases.LLAMA), SCREENED, PRODUCT, 0.65, True),
    Target(_encode(cases.LLAMA, FP32), SCREENED, OURS, 0.5, True),
    Target(Case("decode", cases.LLAMA, BF16), OURS, MODEL, 1.25, True),
    Target(Case("decode", cases.LLAMA, BF16), OURS, BAG, 2, False),
    Target(Case("sae_topk", cases.LLAMA, BF16), OURS, SAELENS, 5, False),
    Target(Case("sae_topk", cases.LLAMA, BF16), OURS, SPARSIFY, 3, False),
    Target(Case("sae_train", cases.GPT2_WIDE, BF16), OURS, SPARSIFY, 2, False),
    *(Target(Case("loss", shape, BF16), OURS, PRODUCTS, 1.15, True) for shape in cases.LOSSES),
)
# Of T * F * 2 bytes, beside the results, at F = 131072.
MEMORY_SHARE = 0.05
MEMORY_CASES = (_encode(cases.GPT2_WIDE), _encode(cases.LLAMA), _encode(cases.LLAMA._replace(k=256)))
