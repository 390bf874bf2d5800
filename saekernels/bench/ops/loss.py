"""linear_ce_kl against log-softmaxes of whole and of chunked logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saekernels.bench.measure.contenders import CHUNKED, OURS, Contender, Op, Ready, Work, best_chunk, far, tolerance
from saekernels.bench.measure.shapes import (
    LOSS_SHAPES,
    QUICK_LOSS_SHAPES,
    Problem,
    Shape,
    dense_bytes,
    matrix,
    matrix_bytes,
    normal,
)
from saekernels.ops import linear_ce_kl

WHOLE = "torch"
PRODUCTS = "torch, the products alone"

# ce_p, ce_q, kl, top-1 agreement: [T] each.
Losses = tuple[Tensor, Tensor, Tensor, Tensor]


def make(shape: Shape, dtype: torch.dtype) -> Problem:
    """h_p, h_q [T, d], a little apart; targets [T]; W_U [V, d]; logits are about standard normal."""
    T, d, V, _ = shape
    h_p = normal((T, d), 0)
    h_q = h_p + normal((T, d), 8, 0.3)
    targets = torch.randint(V, (T,), generator=torch.Generator().manual_seed(9))
    return Problem(shape, dtype, (h_p.to(dtype), h_q.to(dtype), targets), {"W_U": matrix(V, d, dtype, 10)})


def ours(problem: Problem) -> Ready:
    W = problem.weights["W_U"]
    return Ready(lambda h_p, h_q, targets: linear_ce_kl(h_p, h_q, W, targets))


def losses(h_p: Tensor, h_q: Tensor, W: Tensor, targets: Tensor) -> Losses:
    """From logits [T, V], in float32 as evaluators compute them (in float64 for float64)."""
    wide = torch.promote_types(h_p.dtype, torch.float32)
    log_p, log_q = ((h @ W.T).to(wide).log_softmax(-1) for h in (h_p, h_q))
    ce_p, ce_q = (-log.gather(1, targets[:, None]).squeeze(1) for log in (log_p, log_q))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return ce_p, ce_q, kl, (log_p.argmax(-1) == log_q.argmax(-1)).to(wide)


def whole(problem: Problem) -> Ready:
    W = problem.weights["W_U"]
    return Ready(lambda h_p, h_q, targets: losses(h_p, h_q, W, targets))


def chunked(problem: Problem) -> Ready:
    """A few rows at a time."""
    return best_chunk(problem, lambda rows: in_chunks(problem.weights["W_U"], rows))


def in_chunks(W: Tensor, rows: int) -> Callable[[Tensor, Tensor, Tensor], Losses]:
    def call(h_p: Tensor, h_q: Tensor, targets: Tensor) -> Losses:
        parts = zip(h_p.split(rows), h_q.split(rows), targets.split(rows), strict=True)
        columns = zip(*(losses(p, q, W, target) for p, q, target in parts), strict=True)
        ce_p, ce_q, kl, agree = (torch.cat(column) for column in columns)
        return ce_p, ce_q, kl, agree

    return call


def products(problem: Problem) -> Ready:
    """Both logits [T, V] and nothing of them: what it would take if the rest were free."""
    W = problem.weights["W_U"]
    return Ready(lambda h_p, h_q, targets: (h_p @ W.T, h_q @ W.T))


def expect(problem: Problem) -> Losses:
    """float64, on the sampled rows."""
    h_p, h_q, targets = (tensor[problem.sample()] for tensor in problem.tokens)
    return losses(h_p.double(), h_q.double(), problem.weights["W_U"].double(), targets)


def check(problem: Problem, expected: Losses, output: Losses) -> str | None:
    """All but one row of the agreement: two words may tie within rounding. Where torch rounds the logits themselves,
    rows of which the two best lie within that rounding are left out.
    """
    limit = tolerance(problem.dtype)
    rows = problem.sample()
    for name, got, want in zip(("ce_p", "ce_q", "kl"), output, expected, strict=False):
        wrong = far(name, got[rows], want, limit)
        if wrong:
            return wrong
    unequal = int(((output[3][rows].double() != expected[3]) & _clear(problem)).sum())
    return f"top-1 agreement: {unequal} of {len(rows)} rows differ" if unequal > 1 else None


def _clear(problem: Problem) -> Tensor:
    """[sampled rows] bool: the best logit of each stream leads by more than a rounding of both to the tokens' dtype."""
    rows, W = problem.sample(), problem.weights["W_U"].double()
    if problem.dtype == torch.float32:
        return torch.ones(len(rows), dtype=torch.bool)
    best, second = torch.stack([(h[rows].double() @ W.T).topk(2).values for h in problem.tokens[:2]]).unbind(-1)
    return (best - second > torch.finfo(problem.dtype).eps * best.abs()).all(0)


def check_products(problem: Problem, _: Losses, output: tuple[Tensor, Tensor]) -> str | None:
    """For the logits alone."""
    (h_p, h_q, _targets), rows = problem.tokens, problem.sample()
    W = problem.weights["W_U"].double()
    pairs = (("z_p", output[0], h_p), ("z_q", output[1], h_q))
    limit = tolerance(problem.dtype)
    return next((wrong for name, z, h in pairs if (wrong := far(name, z[rows], h[rows].double() @ W.T, limit))), None)


def contenders(_: torch.dtype) -> Sequence[Contender]:
    return [
        Contender(OURS, ours),
        Contender(CHUNKED, chunked),
        Contender(WHOLE, whole),
        Contender(PRODUCTS, products, check=check_products),
    ]


def work(problem: Problem, _: Losses) -> Work:
    """Two streams [T, d], W_U [V, d], targets; four [T] float32."""
    T, d, V, _k = problem.shape
    return Work((2 * T * d + V * d) * problem.dtype.itemsize + 8 * T + 16 * T, 4 * T * d * V)


def needs(shape: Shape, dtype: torch.dtype) -> int:
    """W_U, a float64 copy for the check, and about seven [T, V] float32 of the whole computation."""
    wide = matrix_bytes(shape, torch.float64)
    return matrix_bytes(shape, dtype) + wide + 7 * dense_bytes(shape, torch.float32)


LOSS = Op(
    name="loss",
    make=make,
    contenders=contenders,
    expect=expect,
    check=check,
    work=work,
    needs=needs,
    shapes=LOSS_SHAPES,
    quick_shapes=QUICK_LOSS_SHAPES,
    dtypes=(torch.float32, torch.bfloat16),
    baselines=(CHUNKED, WHOLE),
)
