"""encode_threshold against a product and a comparison in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from saekernels.bench.measure.contenders import (
    CHUNKED,
    OURS,
    Contender,
    Ready,
    Work,
    best_chunk,
    chunk_buffer,
    far,
    product_into,
    tolerance,
)
from saekernels.bench.measure.shapes import Problem, Shape, encoder_problem, threshold_for
from saekernels.bench.ops.encode import ENCODE, PREPARED, PRODUCT, WHOLE, can_prepare, check_product, product
from saekernels.ops import encode_threshold, prepare

Csr = tuple[Tensor, Tensor, Tensor]


def make(shape: Shape, dtype: torch.dtype) -> Problem:
    """The encoder's problem with one threshold per latent [F] float32, which about k latents of a row pass."""
    problem = encoder_problem(shape, dtype)
    problem.weights["threshold"] = torch.full((shape.F,), threshold_for(shape))
    return problem


def ours(problem: Problem) -> Ready:
    """The op as it is called without anything prepared."""
    weights = problem.weights
    return Ready(lambda x: encode_threshold(x, weights["W_enc"], weights["b_enc"], weights["threshold"]))


def ours_prepared(problem: Problem) -> Ready:
    """With `prepare(W_enc)`, made before."""
    weights = problem.weights
    made = prepare(weights["W_enc"])
    return Ready(lambda x: encode_threshold(x, weights["W_enc"], weights["b_enc"], weights["threshold"], prepared=made))


def above(pre: Tensor, threshold: Tensor) -> Csr:
    """The entries of pre [T, F] above threshold [F], in CSR; each step but the first two on entries alone."""
    rows, latents = (pre > threshold).nonzero().unbind(1)
    offsets = torch.searchsorted(rows, torch.arange(len(pre) + 1))
    return pre[rows, latents], latents, offsets


def whole(problem: Problem) -> Ready:
    """All pre-activations [T, F], then a mask."""
    W, b, threshold = (problem.weights[name] for name in ("W_enc", "b_enc", "threshold"))
    return Ready(lambda x: above(functional.linear(x, W, b), threshold))


def chunked(problem: Problem) -> Ready:
    """A few rows at a time, their pre-activations in one buffer that stays in the cache."""
    return best_chunk(problem, lambda rows: _in_chunks(problem, rows))


def _in_chunks(problem: Problem, rows: int) -> Callable[[Tensor], Csr]:
    W, b, threshold = (problem.weights[name] for name in ("W_enc", "b_enc", "threshold"))

    def call(x: Tensor) -> Csr:
        buffer, parts, nnz = chunk_buffer(x, rows, len(W)), [], 0
        for part in x.split(rows):
            values, indices, offsets = above(product_into(buffer, part, W, b), threshold)
            parts.append((values, indices, offsets[1:] + nnz))
            nnz += len(values)
        values, indices, offsets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return values, indices, functional.pad(offsets, (1, 0))

    return call


def check(problem: Problem, expected: Tensor, output: Csr) -> str | None:
    """Every latent clearly above its threshold, none clearly below, with the right values."""
    values, indices, offsets = output
    if len(offsets) != problem.shape.T + 1:
        return f"offsets: {len(offsets)}, need T + 1 = {problem.shape.T + 1}"
    limit, threshold = tolerance(problem.dtype), problem.weights["threshold"].double()
    margin = limit * threshold.abs().clamp(min=1)
    for row, pre in zip(problem.sample().tolist(), expected, strict=True):
        entries = slice(int(offsets[row]), int(offsets[row + 1]))
        chosen = torch.zeros(len(pre), dtype=torch.bool)
        chosen[indices[entries].long()] = True
        if bool((chosen & (pre < threshold - margin)).any() or (~chosen & (pre > threshold + margin)).any()):
            return f"selection: row {row} is wrong by more than {limit:.2g}"
        wrong = far("values", values[entries], pre[indices[entries].long()], limit)
        if wrong:
            return wrong
    return None


def contenders(dtype: torch.dtype) -> Sequence[Contender]:
    return [
        Contender(OURS, ours),
        *([Contender(PREPARED, ours_prepared)] if can_prepare(dtype) else []),
        Contender(CHUNKED, chunked),
        Contender(WHOLE, whole),
        Contender(PRODUCT, product, check=check_product),
    ]


def work(problem: Problem, expected: Tensor) -> Work:
    """Inputs [T, d], [F, d], [F] twice; outputs of nnz entries (estimated from the sampled rows) and T + 1 offsets."""
    T, d, F, _ = problem.shape
    size = problem.dtype.itemsize
    nnz = int((expected > problem.weights["threshold"]).sum()) * T // len(expected)
    return Work((T * d + F * d + F) * size + 4 * F + nnz * (size + 4) + 8 * (T + 1), 2 * T * d * F)


THRESHOLD = replace(
    ENCODE,
    name="threshold",
    make=make,
    contenders=contenders,
    check=check,
    work=work,
    dtypes=(torch.float32,),
    baselines=(CHUNKED, WHOLE),
)
