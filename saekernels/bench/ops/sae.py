"""The forward of a whole SAE (TopK and JumpReLU) against chunked torch, SAELens and sparsify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from saekernels.bench.measure import peers
from saekernels.bench.measure.contenders import (
    CHUNKED,
    OURS,
    Contender,
    Op,
    Ready,
    Work,
    best_chunk,
    chunk_buffer,
    product_into,
    relative_error,
)
from saekernels.bench.measure.shapes import (
    QUICK_SAE_SHAPES,
    SAE_SHAPES,
    Problem,
    Shape,
    dense_bytes,
    matrix_bytes,
    sae_problem,
    threshold_for,
)
from saekernels.bench.ops.threshold import above
from saekernels.sae.activations import JumpReLU, TopK
from saekernels.sae.module import SAE

SAELENS = "SAELens"
SPARSIFY = "sparsify"
DICTIONARY = "dictionary_learning"
# Of the norm of all sampled rows. In bf16 a peer rounds pre-activations before it selects.
_ALLOWED = {torch.float32: 1e-2, torch.bfloat16: 0.3}


class Expected(NamedTuple):
    """On the sampled rows: the reconstruction [rows, d] float64, and the number of active latents."""

    output: Tensor
    active: int


def make_topk(shape: Shape, dtype: torch.dtype) -> Problem:
    return sae_problem(shape, dtype)


def make_jumprelu(shape: Shape, dtype: torch.dtype) -> Problem:
    """With thresholds that about k latents of a row pass: x - b_dec is a little wider than x."""
    problem = sae_problem(shape, dtype)
    problem.weights["threshold"] = torch.full((shape.F,), threshold_for(shape))
    return problem


def ours(problem: Problem) -> Ready:
    """The module, warm: it prepares its weights at its second call."""
    weights, (_, d, F, k) = problem.weights, problem.shape
    activation = JumpReLU() if "threshold" in weights else TopK(k)
    module = SAE(d, F, activation, device="meta")
    for name, weight in weights.items():
        setattr(module, name, nn.Parameter(weight))
    for _ in range(2):
        module(problem.tokens[0][:1])
    return Ready(module)


def chunked(problem: Problem) -> Ready:
    """Rows a few at a time: product, selection and an embedding bag, the best that plain torch does here."""
    pick = pick_above if "threshold" in problem.weights else pick_topk
    return best_chunk(problem, lambda rows: in_chunks(problem, rows, pick))


Picked = tuple[Tensor, Tensor, Tensor | None]


def pick_topk(problem: Problem, pre: Tensor) -> Picked:
    values, indices = pre.topk(problem.shape.k)
    return values.relu(), indices, None


def pick_above(problem: Problem, pre: Tensor) -> Picked:
    values, latents, offsets = above(pre, problem.weights["threshold"])
    return values, latents, offsets[:-1]


def in_chunks(problem: Problem, rows: int, pick: Callable[[Problem, Tensor], Picked]) -> Callable[[Tensor], Tensor]:
    W_enc, b_enc, W_dec, b_dec = (problem.weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))

    def call(x: Tensor) -> Tensor:
        out, buffer = torch.empty_like(x), chunk_buffer(x, rows, len(W_enc))
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            values, indices, offsets = pick(problem, product_into(buffer, part - b_dec, W_enc, b_enc))
            bags = functional.embedding_bag(indices, W_dec, offsets, per_sample_weights=values, mode="sum")
            torch.add(bags, b_dec, out=out[start : start + rows])
        return out

    return call


def saelens_topk(problem: Problem) -> Ready:
    return Ready(peers.saelens(problem.weights, problem.shape.k))


def saelens_jumprelu(problem: Problem) -> Ready:
    return Ready(peers.saelens(problem.weights, None))


def sparsify(problem: Problem) -> Ready:
    """Its encode and decode, without the residuals and variances of its forward."""
    module = peers.sparsify(problem.weights, problem.shape.k)

    def call(x: Tensor) -> Tensor:
        codes = module.encode(x)
        return module.decode(codes.top_acts, codes.top_indices)

    return Ready(call)


def dictionary_learning(problem: Problem) -> Ready:
    return Ready(peers.dictionary_learning(problem.weights, problem.shape.k))


def expect(problem: Problem) -> Expected:
    """From float64 pre-activations of the sampled rows."""
    weights = {name: problem.weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    rows = problem.tokens[0][problem.sample()].double() - weights["b_dec"].double()
    pre = torch.cat([rows @ block.double().T for block in weights["W_enc"].split(8192)], 1) + weights["b_enc"].double()
    if "threshold" in problem.weights:
        codes = pre * (pre > problem.weights["threshold"].double())
    else:
        values, indices = pre.topk(problem.shape.k)
        codes = torch.zeros_like(pre).scatter_(1, indices, values.relu())
    output = weights["b_dec"].double().expand_as(rows).clone()
    for part, block in zip(codes.split(8192, 1), weights["W_dec"].split(8192), strict=True):
        output += part @ block.double()
    return Expected(output, int((codes != 0).sum()))


def check(problem: Problem, expected: Expected, output: Tensor) -> str | None:
    if output.shape != (problem.shape.T, problem.shape.d):
        return f"shape {list(output.shape)}, need {[problem.shape.T, problem.shape.d]}"
    return relative_error("output", output[problem.sample()], expected.output, _ALLOWED[problem.dtype])


def topk_contenders(_: torch.dtype) -> Sequence[Contender]:
    return [
        Contender(OURS, ours),
        Contender(CHUNKED, chunked),
        Contender(SAELENS, saelens_topk),
        Contender(SPARSIFY, sparsify),
        Contender(DICTIONARY, dictionary_learning),
    ]


def jumprelu_contenders(_: torch.dtype) -> Sequence[Contender]:
    return [Contender(OURS, ours), Contender(CHUNKED, chunked), Contender(SAELENS, saelens_jumprelu)]


def work(problem: Problem, expected: Expected) -> Work:
    """Inputs [T, d], [F, d], [F], the decoder rows that active latents need (at most one each); output [T, d]."""
    T, d, F, _ = problem.shape
    active = expected.active * T // len(expected.output)
    return Work((2 * T * d + F * d + F + min(active, F) * d) * problem.dtype.itemsize, 2 * T * d * F + 2 * active * d)


def needs(shape: Shape, dtype: torch.dtype) -> int:
    """Both weights, a peer's copy of W_enc, and SAELens's four [T, F]."""
    return 3 * matrix_bytes(shape, dtype) + 4 * dense_bytes(shape, dtype)


SAE_TOPK = Op(
    name="sae_topk",
    make=make_topk,
    contenders=topk_contenders,
    expect=expect,
    check=check,
    work=work,
    needs=needs,
    shapes=SAE_SHAPES,
    quick_shapes=QUICK_SAE_SHAPES,
)
SAE_JUMPRELU = Op(
    name="sae_jumprelu",
    make=make_jumprelu,
    contenders=jumprelu_contenders,
    expect=expect,
    check=check,
    work=work,
    needs=needs,
    shapes=SAE_SHAPES,
    quick_shapes=QUICK_SAE_SHAPES,
)
