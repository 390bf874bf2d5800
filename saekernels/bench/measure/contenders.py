"""What an op's benchmark consists of: contenders, what a right answer is, and the least work it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from saekernels.bench.measure.shapes import Problem, Shape

OURS = "saekernels"
CHUNKED = "torch, chunked"
CHUNKED_FLOAT32 = "torch, chunked, float32 copies"
COMPILED = "torch.compile"
CHUNK_ROWS = (16, 64, 256)

# An answer's check: (problem, what `expect` returned, the answer) to None, or to what is wrong with it.
Check = Callable[[Problem, Any, Any], str | None]


class Ready(NamedTuple):
    """A contender set up for a problem: call(*tokens), and what it chose on the way ("64 rows")."""

    call: Callable[..., Any]
    detail: str = ""


@dataclass(frozen=True)
class Contender:
    """One way to compute an op.

    Attributes:
        prepare: sets it up (modules, copies of weights); not timed.
        check: instead of the op's, for a contender that computes only a part.
        slow_setup: takes seconds to set up, so `--quick` leaves it out.
        like: the contender before it that it is about as fast as: where that one is skipped as too slow, so is this,
            and no pilot of its own is run (which would compile it for another shape).
    """

    name: str
    prepare: Callable[[Problem], Ready]
    check: Check | None = None
    slow_setup: bool = False
    like: str | None = None


class Work(NamedTuple):
    """The least that the op takes: each input read once, each output written once."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Op:
    """One op's benchmark.

    Attributes:
        contenders: for a dtype, ours first.
        expect: the right answer, computed once per case (float64, on sampled rows).
        work: from the problem and the expectation.
        needs: bytes of inputs, copies and the largest temporaries.
        baselines: the contenders that the closing summary holds ours against; the fastest of them counts.
        own_shapes: it is of its shapes alone, so others that are asked for are not for it.
    """

    name: str
    make: Callable[[Shape, torch.dtype], Problem]
    contenders: Callable[[torch.dtype], Sequence[Contender]]
    expect: Callable[[Problem], Any]
    check: Check
    work: Callable[[Problem, Any], Work]
    needs: Callable[[Shape, torch.dtype], int]
    shapes: tuple[Shape, ...]
    quick_shapes: tuple[Shape, ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    baselines: tuple[str, ...] = (CHUNKED,)
    own_shapes: bool = False


def product_into(buffer: Tensor | None, rows: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """rows @ W.T + b [rows, F], into a buffer with at least so many rows where there is one."""
    if buffer is None:
        return functional.linear(rows, W, b)
    return torch.addmm(b, rows, W.T, out=buffer[: len(rows)])


def chunk_buffer(x: Tensor, rows: int, F: int) -> Tensor | None:
    """[rows, F] for `product_into`. None where one chunk holds all of x: torch's product is then faster without."""
    return x.new_empty(rows, F) if len(x) > rows else None


def best_chunk(problem: Problem, make: Callable[[int], Callable[..., Any]]) -> Ready:
    """`make(rows)` for the number of rows that is fastest on the first 256 tokens."""
    tokens = problem.first(max(CHUNK_ROWS))
    sizes = [rows for rows in CHUNK_ROWS if rows < 2 * problem.shape.T] or [min(CHUNK_ROWS)]
    calls = {rows: make(rows) for rows in sizes}
    if len(calls) > 1:
        sizes.sort(key=lambda rows: _seconds(calls[rows], tokens))
    return Ready(calls[sizes[0]], f"{sizes[0]} rows")


def _seconds(call: Callable[..., Any], tokens: tuple[Tensor, ...]) -> float:
    start = time.perf_counter()
    call(*tokens)
    return time.perf_counter() - start


def compiled(call: Callable[..., Any], problem: Problem) -> Ready:
    """torch.compile'd for exactly this shape, and compiled."""
    # One code object, many cases: past a limit dynamo would silently stop compiling it.
    torch.compiler.reset()
    fast = torch.compile(call, dynamic=False)
    fast(*problem.tokens)
    return Ready(fast)


def tolerance(dtype: torch.dtype) -> float:
    """What sums and roundings may do to values of about 1 to 10."""
    return 2e-4 if dtype == torch.float32 else 4e-2


def far(name: str, got: Tensor, want: Tensor, limit: float) -> str | None:
    """What is wrong if `got` is not `want` [same shape] within `limit`, absolute for values below 1, else relative."""
    if got.shape != want.shape:
        return f"{name}: shape {list(got.shape)}, need {list(want.shape)}"
    error = (got.double() - want.double()).abs() / want.double().abs().clamp(min=1)
    worst = float(error.nan_to_num(nan=float("inf")).max()) if error.numel() else 0.0
    return f"{name}: off by {worst:.2g}, allowed {limit:.2g}" if worst > limit else None


def relative_error(name: str, got: Tensor, want: Tensor, limit: float) -> str | None:
    """What is wrong if |got - want| / |want| (Euclidean) is above `limit`.

    For results of a whole SAE: a latent that ties with another within rounding may be taken for it.
    """
    if got.shape != want.shape:
        return f"{name}: shape {list(got.shape)}, need {list(want.shape)}"
    error = float((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-12))
    return None if error <= limit else f"{name}: relative error {error:.2g}, allowed {limit:.2g}"
