"""What a call costs beside its work: one token and few latents, a thousand calls, so that their ms are the µs of one.

Against what is called in torch instead, with warm caches, as in a loop that makes a token at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saekernels.bench.measure.contenders import OURS, Contender, Op, Ready, Work, far, tolerance
from saekernels.bench.measure.shapes import Problem, Shape, dense_bytes, normal
from saekernels.bench.ops import encode, loss
from saekernels.bench.ops.decode import BAG, DECODE
from saekernels.bench.ops.encode import ENCODE
from saekernels.bench.ops.loss import LOSS
from saekernels.bench.ops.threshold import THRESHOLD
from saekernels.ops import topk

CALLS = 1000
_SHAPE = Shape(1, 64, 1024, 8)


def a_thousand(contender: Contender) -> Contender:
    """The same, called so often one after the other."""

    def prepare(problem: Problem) -> Ready:
        call = contender.prepare(problem).call

        def calls(*tokens: Tensor) -> object:
            for _ in range(CALLS - 1):
                call(*tokens)
            return call(*tokens)

        return Ready(calls, f"{CALLS:,} calls")

    return replace(contender, prepare=prepare)


def calls_of(op: Op, names: Sequence[str], shape: Shape = _SHAPE) -> Op:
    """The op `<name>_call`: those of its contenders, ours first, that do all of the work in as few calls as can be."""

    def work(problem: Problem, expected: object) -> Work:
        bytes_, flops = op.work(problem, expected)
        return Work(CALLS * bytes_, CALLS * flops)

    return replace(
        op,
        name=f"{op.name}_call",
        contenders=lambda dtype: [a_thousand(one) for one in op.contenders(dtype) if one.name in (OURS, *names)],
        work=work,
        shapes=(shape,),
        quick_shapes=(shape,),
        dtypes=(torch.float32,),
        baselines=(names[-1],),
        own_shapes=True,
    )


def make_scores(shape: Shape, dtype: torch.dtype) -> Problem:
    """scores [T, F], standard normal."""
    return Problem(shape, dtype, (normal((shape.T, shape.F), 0).to(dtype),))


def check_topk(problem: Problem, expected: Tensor, output: tuple[Tensor, Tensor]) -> str | None:
    """The best values, and indices that lead to them."""
    values, indices = (part[problem.sample()] for part in output)
    (scores,) = problem.tokens
    limit = tolerance(problem.dtype)
    return far("values", values, expected, limit) or far(
        "indices", scores[problem.sample()].gather(1, indices.long()), expected, limit
    )


TOPK = Op(
    name="topk",
    make=make_scores,
    contenders=lambda _: [
        Contender(OURS, lambda problem: Ready(lambda scores: topk(scores, problem.shape.k))),
        Contender("torch", lambda problem: Ready(lambda scores: torch.topk(scores, problem.shape.k))),
    ],
    expect=lambda problem: problem.tokens[0][problem.sample()].double().topk(problem.shape.k).values,
    check=check_topk,
    work=lambda problem, _: Work(problem.tokens[0].nbytes + problem.shape.T * problem.shape.k * 8, 0),
    needs=lambda shape, dtype: 2 * dense_bytes(shape, dtype),
    shapes=(_SHAPE,),
    quick_shapes=(_SHAPE,),
)
CALLED = (
    calls_of(ENCODE, (encode.PREPARED, encode.WHOLE)),
    calls_of(THRESHOLD, (encode.PREPARED, encode.WHOLE)),
    calls_of(TOPK, ("torch",)),
    calls_of(DECODE, (BAG,)),
    calls_of(LOSS, (loss.WHOLE,), Shape(1, 64, 1024)),
)
