"""topk: the k largest of scores that already exist, in a total order."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import SymInt, Tensor

from saekernels.backends import registry
from saekernels.ops import _check
from saekernels.ops._library import Op, register, reshaped, rows_of
from saekernels.ops.encode_topk import TopKCodes


def topk(scores: Tensor, k: int, *, backend: str | None = None) -> TopKCodes:
    """The k largest scores of each row: descending, ties by ascending index, NaN above +inf, -0.0 tied with +0.0.

    Args:
        scores: [..., F], float32, bfloat16, float16, or float64 (reference backend only); any strides.
        k: 1 <= k <= F.
        backend: its name (see `saekernels info`), or None for the best one that serves the inputs.

    Returns:
        TopKCodes: values [..., k], the elements themselves, and indices [..., k] int32. Values are differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
    """
    return TopKCodes(*_topk(scores, k=k, backend=backend))


@dataclass(slots=True)
class TopK(Op):
    """saekernels::topk."""

    ROWS = ("scores",)

    scores: Tensor
    k: int | SymInt
    _: KW_ONLY
    backend: str | None = None

    def check(self) -> None:
        scores = self.scores
        _check.dtype_in("scores", scores, _check.FLOATS)
        if scores.dim() < 1 or scores.shape[-1] < 1 or scores.shape[-1] >= 2**31:
            raise ValueError(f"scores: got shape {list(scores.shape)}, need [..., F] with 1 <= F < 2^31")
        _check.k_of(self.k, scores.shape[-1], "scores")

    def compute(self) -> tuple[Tensor, Tensor]:
        scores = self.scores
        kernels = registry.select("topk", scores.device.type, scores.dtype, self.backend)
        values, indices = kernels.topk(rows_of(scores), self.k)
        shape = (*scores.shape[:-1], self.k)
        return reshaped(values, shape), reshaped(indices, shape)

    def empty(self) -> tuple[Tensor, Tensor]:
        shape = (*self.scores.shape[:-1], self.k)
        return self.scores.new_empty(shape), self.scores.new_empty(shape, dtype=torch.int32)

    def save(self, ctx: Any, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.latents = self.scores.shape[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        zeros = grads[0].new_zeros(*indices.shape[:-1], ctx.latents)
        return zeros.scatter(-1, indices.long(), grads[0]), None


_topk = register("topk", TopK)
