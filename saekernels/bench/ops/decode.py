"""decode against torch's embedding bag and a product with dense codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from saekernels.bench.measure.contenders import OURS, Contender, Op, Ready, Work, far, tolerance
from saekernels.bench.measure.shapes import (
    QUICK_SAE_SHAPES,
    SAE_SHAPES,
    Problem,
    Shape,
    dense_bytes,
    matrix,
    matrix_bytes,
    normal,
)
from saekernels.ops import decode

BAG = "torch embedding_bag"
DENSE = "dense codes @ W_dec"


def make(shape: Shape, dtype: torch.dtype) -> Problem:
    """values [T, k] of about 3, indices [T, k] int32 uniform over the latents; W_dec [F, d]."""
    T, d, F, k = shape
    values = normal((T, k), 5, 0.3).add_(3).to(dtype)
    indices = torch.randint(F, (T, k), dtype=torch.int32, generator=torch.Generator().manual_seed(6))
    return Problem(shape, dtype, (values, indices), {"W_dec": matrix(F, d, dtype, 3)})


def ours(problem: Problem) -> Ready:
    W = problem.weights["W_dec"]
    return Ready(lambda values, indices: decode(values, indices, W))


def bag(problem: Problem) -> Ready:
    """F.embedding_bag with the values as weights: what sparsify decodes with on the CPU."""
    W = problem.weights["W_dec"]
    return Ready(lambda values, indices: functional.embedding_bag(indices, W, per_sample_weights=values, mode="sum"))


def dense(problem: Problem) -> Ready:
    """Codes that already lie in a [T, F] matrix, as after a dense activation."""
    given, latents = problem.tokens
    codes = given.new_zeros(problem.shape.T, problem.shape.F).scatter_add_(1, latents.long(), given)
    W = problem.weights["W_dec"]
    return Ready(lambda values, _: codes[: len(values)] @ W)


def expect(problem: Problem) -> Tensor:
    """[sampled rows, d] float64."""
    values, indices = (tensor[problem.sample()] for tensor in problem.tokens)
    rows = problem.weights["W_dec"][indices.long()].double()
    return torch.einsum("tk,tkd->td", values.double(), rows)


def check(problem: Problem, expected: Tensor, output: Tensor) -> str | None:
    if output.shape != (problem.shape.T, problem.shape.d):
        return f"shape {list(output.shape)}, need {[problem.shape.T, problem.shape.d]}"
    return far("output", output[problem.sample()], expected, tolerance(problem.dtype))


def contenders(_: torch.dtype) -> Sequence[Contender]:
    return [Contender(OURS, ours), Contender(BAG, bag), Contender(DENSE, dense)]


def work(problem: Problem, _: Tensor) -> Work:
    """Codes [T, k] twice, each decoder row that any token uses once; output [T, d]."""
    T, d, _F, k = problem.shape
    size = problem.dtype.itemsize
    used = len(problem.tokens[1].unique())
    return Work(T * k * (size + 4) + used * d * size + T * d * size, 2 * T * k * d)


def needs(shape: Shape, dtype: torch.dtype) -> int:
    """The weights (float32 while they are made) and dense codes."""
    return 2 * matrix_bytes(shape, torch.float32) + 2 * dense_bytes(shape, dtype)


DECODE = Op(
    name="decode",
    make=make,
    contenders=contenders,
    expect=expect,
    check=check,
    work=work,
    needs=needs,
    shapes=SAE_SHAPES,
    quick_shapes=QUICK_SAE_SHAPES,
    dtypes=(torch.float32, torch.bfloat16),
    baselines=(BAG,),
)
