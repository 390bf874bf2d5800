"""linear_ce_kl and its gradient with respect to both streams, the unembedding frozen, against autograd in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saekernels.bench.measure.contenders import CHUNKED, OURS, Contender, Ready, Work, best_chunk, relative_error
from saekernels.bench.measure.shapes import (
    LOSS_TRAIN_SHAPES,
    Problem,
    Shape,
    dense_bytes,
    matrix_bytes,
)
from saekernels.bench.ops.loss import LOSS, PRODUCTS, WHOLE, losses
from saekernels.ops import linear_ce_kl

# Of a gradient's norm. torch rounds half-precision logits, and with them probabilities.
_ALLOWED = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}

# The gradients of sum(ce_p + ce_q + kl): h_p's and h_q's, [T, d] each.
Gradients = tuple[Tensor, Tensor]


def _gradients(loss: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]) -> Callable[..., Gradients]:
    """Forward and backward of the three losses that loss(h_p, h_q, targets) begins with."""

    def call(h_p: Tensor, h_q: Tensor, targets: Tensor) -> Gradients:
        p, q = h_p.detach().requires_grad_(), h_q.detach().requires_grad_()
        with torch.enable_grad():
            ce_p, ce_q, kl = loss(p, q, targets)[:3]
            d_hp, d_hq = torch.autograd.grad((ce_p + ce_q + kl).sum(), (p, q))
        return d_hp, d_hq

    return call


def ours(problem: Problem) -> Ready:
    W = problem.weights["W_U"]
    return Ready(_gradients(lambda h_p, h_q, targets: linear_ce_kl(h_p, h_q, W, targets)))


def whole(problem: Problem) -> Ready:
    """Autograd through log-softmaxes of all logits."""
    W = problem.weights["W_U"]
    return Ready(_gradients(lambda h_p, h_q, targets: losses(h_p, h_q, W, targets)))


def in_chunks(problem: Problem, rows: int) -> Callable[..., Gradients]:
    """Forward and backward of a few rows at a time."""
    call = whole(problem).call

    def run(*tokens: Tensor) -> Gradients:
        parts = [call(*part) for part in zip(*(tensor.split(rows) for tensor in tokens), strict=True)]
        d_hp, d_hq = (torch.cat(column) for column in zip(*parts, strict=True))
        return d_hp, d_hq

    return run


def chunked(problem: Problem) -> Ready:
    """In the best of a few chunk sizes."""
    return best_chunk(problem, lambda rows: in_chunks(problem, rows))


def products(problem: Problem) -> Ready:
    """The four products alone, two forward and two backward, the gradients of logits being given."""
    W, (T, _, V, _) = problem.weights["W_U"], problem.shape
    given = torch.zeros(T, V, dtype=problem.dtype)

    def call(h_p: Tensor, h_q: Tensor, targets: Tensor) -> Gradients:
        h_p @ W.T, h_q @ W.T
        return given[: len(targets)] @ W, given[: len(targets)] @ W

    return Ready(call)


def expect(problem: Problem) -> Gradients:
    """float64, on the sampled rows."""
    h_p, h_q, targets = (tensor[problem.sample()] for tensor in problem.tokens)
    W = problem.weights["W_U"].double()
    return _gradients(lambda p, q, own: losses(p, q, W, own))(h_p.double(), h_q.double(), targets)


def check(problem: Problem, expected: Gradients, output: Gradients) -> str | None:
    """Both gradients."""
    rows, limit = problem.sample(), _ALLOWED[problem.dtype]
    pairs = zip(("h_p", "h_q"), output, expected, strict=True)
    named = ((f"gradient of {name}", got[rows], want) for name, got, want in pairs)
    return next((wrong for name, got, want in named if (wrong := relative_error(name, got, want, limit))), None)


def check_products(problem: Problem, _: Gradients, output: Gradients) -> str | None:
    """For products of given gradients of 0."""
    return None if all(not bool(part.any()) for part in output) else "products: not 0"


def contenders(_: torch.dtype) -> Sequence[Contender]:
    return [
        Contender(OURS, ours),
        Contender(CHUNKED, chunked),
        Contender(WHOLE, whole),
        Contender(PRODUCTS, products, check=check_products),
    ]


def work(problem: Problem, _: Gradients) -> Work:
    """Two streams [T, d] in and out, W_U [V, d], targets; two products forward and two backward."""
    T, d, V, _k = problem.shape
    return Work((4 * T * d + V * d) * problem.dtype.itemsize + 8 * T, 8 * T * d * V)


def needs(shape: Shape, dtype: torch.dtype) -> int:
    """W_U, a float64 copy for the check, and about ten [T, V] float32 of autograd through all logits."""
    wide = matrix_bytes(shape, torch.float64)
    return matrix_bytes(shape, dtype) + wide + 10 * dense_bytes(shape, torch.float32)


LOSS_TRAIN = replace(
    LOSS, name="loss_train", contenders=contenders, expect=expect, check=check, work=work, needs=needs,
    shapes=LOSS_TRAIN_SHAPES,
)  # fmt: skip
