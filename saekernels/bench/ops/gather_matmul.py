"""gather_matmul, 64 vectors at each row, against indexing them for each entry, and a product of torch's for each row.

The others are given rows of W that are gathered already.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saekernels.bench.measure.contenders import OURS, Contender, Op, Ready, Work, far, tolerance
from saekernels.bench.measure.shapes import QUICK_SAE_SHAPES, Problem, Shape, matrix, matrix_bytes, normal
from saekernels.ops import gather_matmul
from saekernels.ops.sparse_maps import uniform_offsets

VECTORS = 64
INDEXED = "torch, vectors indexed, einsum"
PRODUCTS = "torch, a product per row"
BATCHED = "torch, index_select and bmm"
# A prompt's entries at all layers, one layer's, and one layer's of a model with 2 billion parameters.
SHAPES = (Shape(128, 256, 8192, 188), Shape(128, 256, 8192, 16), Shape(64, 2304, 16384, 50))


def make(shape: Shape, dtype: torch.dtype) -> Problem:
    """Vectors [T, 64, d], of which those of one of 64 lie together, indices [T, k] int32 uniform; W [F, d]."""
    T, d, F, k = shape
    vectors = normal((VECTORS, T, d), 5).to(dtype).transpose(0, 1)
    indices = torch.randint(F, (T, k), dtype=torch.int32, generator=torch.Generator().manual_seed(6))
    return Problem(shape, dtype, (vectors, indices), {"W": matrix(F, d, dtype, 3)})


def ours(problem: Problem) -> Ready:
    W, k = problem.weights["W"], problem.shape.k

    def call(vectors: Tensor, indices: Tensor) -> Tensor:
        offsets = uniform_offsets(len(indices), k, indices.device)
        return gather_matmul(vectors.transpose(0, 1), W, indices.reshape(-1), offsets)

    return Ready(call)


def indexed(problem: Problem) -> Ready:
    """A copy of its row's vectors for each entry: circuit-tracer's way."""
    rows = _gathered(problem)
    positions = torch.arange(problem.shape.T, device=rows.device).repeat_interleave(problem.shape.k)

    def call(vectors: Tensor, indices: Tensor) -> Tensor:
        count = indices.numel()
        return torch.einsum("bed,ed->eb", vectors.transpose(0, 1)[:, positions[:count]], rows[:count])

    return Ready(call)


def products(problem: Problem) -> Ready:
    """torch.mm of each row's entries and vectors, into one output."""
    rows, k = _gathered(problem), problem.shape.k

    def call(vectors: Tensor, indices: Tensor) -> Tensor:
        out = vectors.new_empty(indices.numel(), VECTORS)
        for row, its in enumerate(vectors):
            torch.mm(rows[row * k : (row + 1) * k], its.T, out=out[row * k : (row + 1) * k])
        return out

    return Ready(call)


def batched(problem: Problem) -> Ready:
    """torch.bmm of all rows at once, of rows of W that each call gathers, which takes as many entries at each row."""
    W, k = problem.weights["W"], problem.shape.k

    def call(vectors: Tensor, indices: Tensor) -> Tensor:
        gathered = W.index_select(0, indices.reshape(-1)).view(*indices.shape, -1)
        return torch.bmm(gathered, vectors.transpose(1, 2)).view(len(indices) * k, VECTORS)

    return Ready(call)


def _gathered(problem: Problem) -> Tensor:
    return problem.weights["W"][problem.tokens[1].reshape(-1).long()]


def expect(problem: Problem) -> Tensor:
    """[sampled rows, k, 64] float64."""
    vectors, indices = (tensor[problem.sample()] for tensor in problem.tokens)
    return torch.einsum("tbd,tkd->tkb", vectors.double(), problem.weights["W"][indices.long()].double())


def check(problem: Problem, expected: Tensor, output: Tensor) -> str | None:
    T, k = problem.shape.T, problem.shape.k
    if output.shape != (T * k, VECTORS):
        return f"shape {list(output.shape)}, need {[T * k, VECTORS]}"
    return far("output", output.view(T, k, VECTORS)[problem.sample()], expected, tolerance(problem.dtype))


def contenders(_: torch.dtype) -> Sequence[Contender]:
    return [Contender(OURS, ours), Contender(INDEXED, indexed), Contender(PRODUCTS, products)]


def work(problem: Problem, _: Tensor) -> Work:
    """Vectors and indices, each row of W that any token uses once; output [T * k, 64]."""
    T, d, _F, k = problem.shape
    size = problem.dtype.itemsize
    used = len(problem.tokens[1].unique())
    return Work((VECTORS * T * d + used * d + VECTORS * T * k) * size + 4 * T * k, 2 * VECTORS * T * k * d)


def needs(shape: Shape, dtype: torch.dtype) -> int:
    """The weights (float32 while they are made), and vectors for each entry."""
    return 2 * matrix_bytes(shape, torch.float32) + 2 * VECTORS * shape.T * shape.k * shape.d * dtype.itemsize


GATHER_MATMUL = Op(
    name="gather_matmul",
    make=make,
    contenders=contenders,
    expect=expect,
    check=check,
    work=work,
    needs=needs,
    shapes=SHAPES,
    quick_shapes=QUICK_SAE_SHAPES[:1],
    dtypes=(torch.float32,),
    baselines=(INDEXED, PRODUCTS),
)
