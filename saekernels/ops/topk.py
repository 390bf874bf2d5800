"""topk: the k largest of scores that already exist, in a total order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekernels.backends import registry
from saekernels.ops import _check
from saekernels.ops._library import define, differentiable, reshaped
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
    _check.tensors(scores=scores)
    _check.scalars(backend, k=(k, int))
    return TopKCodes(*torch.ops.saekernels.topk(scores, k, backend=backend))


def _check_arguments(scores: Tensor, k: int) -> None:
    _check.tensor("scores", scores)
    _check.dtype_in("scores", scores, _check.FLOATS)
    if scores.dim() < 1 or scores.shape[-1] < 1 or scores.shape[-1] >= 2**31:
        raise ValueError(f"scores: got shape {list(scores.shape)}, need [..., F] with 1 <= F < 2^31")
    _check.k_of(k, scores.shape[-1], "scores")


def _kernel(scores: Tensor, k: int, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    _check_arguments(scores, k)
    kernels = registry.select("topk", scores.device.type, scores.dtype, backend)
    values, indices = kernels.topk(scores.reshape(-1, scores.shape[-1]), k)
    shape = (*scores.shape[:-1], k)
    return reshaped(values, shape), reshaped(indices, shape)


def _fake(scores: Tensor, k: int, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    _check_arguments(scores, k)
    shape = (*scores.shape[:-1], k)
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.latents = inputs[0].shape[-1]


def _backward(ctx: Any, grad_values: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    zeros = grad_values.new_zeros(*grad_values.shape[:-1], ctx.latents)
    return zeros.scatter(-1, indices.long(), grad_values), None


define("topk", "(Tensor scores, SymInt k, *, str? backend=None) -> (Tensor, Tensor)", _kernel, _fake)
differentiable("topk", _backward, _setup_context)
