"""encode_topk against a product and a top-k in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from saekernels.backends import registry
from saekernels.bench.measure.contenders import (
    CHUNKED,
    CHUNKED_FLOAT32,
    COMPILED,
    OURS,
    Contender,
    Op,
    Ready,
    Work,
    best_chunk,
    chunk_buffer,
    compiled,
    far,
    product_into,
    tolerance,
)
from saekernels.bench.measure.shapes import (
    QUICK_SAE_SHAPES,
    SAE_SHAPES,
    WIDE_SHAPES,
    Problem,
    Shape,
    dense_bytes,
    encoder_problem,
    matrix_bytes,
)
from saekernels.ops import encode_topk, prepare

PREPARED = "saekernels, prepared weights"
WHOLE = "torch"
PRODUCT = "torch, the product alone"
BFLOAT16_PRODUCT = "torch, the product alone in bfloat16"

Codes = tuple[Tensor, Tensor]


def ours(problem: Problem) -> Ready:
    """The op as it is called without anything prepared."""
    weights, k = problem.weights, problem.shape.k
    return Ready(lambda x: encode_topk(x, weights["W_enc"], weights["b_enc"], k=k))


def ours_prepared(problem: Problem) -> Ready:
    """With `prepare(W_enc)`, made before: as an SAE module calls it."""
    weights, k = problem.weights, problem.shape.k
    made = prepare(weights["W_enc"])
    return Ready(lambda x: encode_topk(x, weights["W_enc"], weights["b_enc"], k=k, prepared=made))


def whole(problem: Problem) -> Ready:
    """All pre-activations [T, F], then torch.topk."""
    W, b, k = problem.weights["W_enc"], problem.weights["b_enc"], problem.shape.k

    def call(x: Tensor) -> Codes:
        values, indices = torch.topk(functional.linear(x, W, b), k)
        return values.relu(), indices

    return Ready(call)


def chunked(problem: Problem) -> Ready:
    """A few rows at a time, their pre-activations in one buffer that stays in the cache."""
    return best_chunk(problem, lambda rows: in_chunks(problem, rows))


def in_chunks(problem: Problem, rows: int) -> Callable[[Tensor], Codes]:
    W, b, (_, _, F, k) = problem.weights["W_enc"], problem.weights["b_enc"], problem.shape

    def call(x: Tensor) -> Codes:
        values, indices = x.new_empty(len(x), k), x.new_empty(len(x), k, dtype=torch.int64)
        buffer = chunk_buffer(x, rows, F)
        for start in range(0, len(x), rows):
            part = slice(start, min(start + rows, len(x)))
            torch.topk(product_into(buffer, x[part], W, b), k, out=(values[part], indices[part]))
        return values.relu_(), indices

    return call


def chunked_float32(problem: Problem) -> Ready:
    """The same on float32 copies of the weights, which is faster where the CPU has no bf16 products."""
    weights = {name: weight.float() for name, weight in problem.weights.items()}
    copy = Problem(problem.shape, torch.float32, tuple(tensor.float() for tensor in problem.tokens), weights)
    call, detail = chunked(copy)

    def convert(x: Tensor) -> Codes:
        values, indices = call(x.float())
        return values.to(x.dtype), indices

    return Ready(convert, detail)


def product(problem: Problem) -> Ready:
    """x @ W_enc.T + b_enc without any selection: what it would take if that were free."""
    W, b = problem.weights["W_enc"], problem.weights["b_enc"]
    return Ready(lambda x: functional.linear(x, W, b))


def bfloat16_product(problem: Problem) -> Ready:
    """The same of float32 inputs rounded to bfloat16: what an exact encoder could cost where hardware multiplies it."""
    W, b = problem.weights["W_enc"].bfloat16(), problem.weights["b_enc"].bfloat16()
    return Ready(lambda x: functional.linear(x.bfloat16(), W, b))


def expect(problem: Problem) -> Tensor:
    """[sampled rows, F] float64 pre-activations."""
    (x,), W = problem.tokens, problem.weights["W_enc"]
    rows = x[problem.sample()].double()
    # Blocks of latents: a float64 copy of all weights might not fit.
    parts = [rows @ block.double().T for block in W.split(8192)]
    return torch.cat(parts, 1) + problem.weights["b_enc"].double()


def check(problem: Problem, expected: Tensor, output: Codes) -> str | None:
    """Distinct latents, none passed over by more than a rounding, with the right values."""
    values, indices = (part[problem.sample()] for part in output)
    if values.shape != (len(expected), problem.shape.k) or indices.shape != values.shape:
        return f"values {list(output[0].shape)}, indices {list(output[1].shape)}, need {[*problem.shape[::3]]}"
    latents = indices.long()
    if bool((latents.sort(1).values.diff(dim=1) == 0).any()):
        return "indices: a latent is selected twice"
    found, limit = expected.gather(1, latents), tolerance(problem.dtype)
    best = expected.topk(problem.shape.k).values
    return far("selection", found.sort(1, descending=True).values, best, limit) or far(
        "values", values, found.relu(), limit
    )


def check_product(problem: Problem, expected: Tensor, output: Tensor) -> str | None:
    """For the product alone, in whatever dtype."""
    return far("product", output[problem.sample()], expected, tolerance(output.dtype))


def can_prepare(dtype: torch.dtype) -> bool:
    """Whether any backend here makes something of weights ahead of time; a pure Python installation does not."""
    return registry.serves("prepare", "cpu", dtype)


def contenders(dtype: torch.dtype) -> Sequence[Contender]:
    found = [
        Contender(OURS, ours),
        *([Contender(PREPARED, ours_prepared)] if can_prepare(dtype) else []),
        Contender(CHUNKED, chunked),
        Contender(WHOLE, whole),
        Contender(COMPILED, lambda problem: compiled(whole(problem).call, problem), slow_setup=True, like=WHOLE),
        Contender(PRODUCT, product, check=check_product),
    ]
    if dtype == torch.float32:
        found.append(Contender(BFLOAT16_PRODUCT, bfloat16_product, check=check_product))
    else:
        found.insert(3, Contender(CHUNKED_FLOAT32, chunked_float32))
    return found


def work(problem: Problem, _: Any) -> Work:
    """Inputs [T, d], [F, d], [F]; outputs [T, k] twice, indices of 4 bytes."""
    T, d, F, k = problem.shape
    size = problem.dtype.itemsize
    return Work((T * d + F * d + F) * size + T * k * (size + 4), 2 * T * d * F)


def needs(shape: Shape, dtype: torch.dtype) -> int:
    """The weights, a prepared or float32 copy, and two [T, F]."""
    copies = 2 if dtype == torch.float32 else 4
    return copies * matrix_bytes(shape, dtype) + 2 * dense_bytes(shape, torch.float32)


ENCODE = Op(
    name="encode",
    make=encoder_problem,
    contenders=contenders,
    expect=expect,
    check=check,
    work=work,
    needs=needs,
    shapes=(*SAE_SHAPES, *WIDE_SHAPES),
    quick_shapes=QUICK_SAE_SHAPES,
    dtypes=(torch.float32, torch.bfloat16),
    baselines=(CHUNKED, CHUNKED_FLOAT32, WHOLE),
)
