"""Who is timed on a GPU, and what a right answer is: the CPU benchmark's contenders, with a GPU's chunk sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from saekernels.bench.gpu.cases import GPT2_WIDE, LLAMA, LOSSES, Case
from saekernels.bench.measure.contenders import CHUNKED, COMPILED, OURS, Ready, far, relative_error
from saekernels.bench.measure.shapes import Problem
from saekernels.bench.ops import decode, encode, gather_matmul, loss, loss_train, sae, train
from saekernels.ops import encode_topk
from saekernels.ops.prepare import PreparedWeights, usable

FAST, SCREENED, PREPARED = f"{OURS}, fast", f"{OURS}, screened", encode.PREPARED
PRODUCT = encode.PRODUCT
PRODUCTS = "torch, the two products alone"
ALL_PRODUCTS = "torch, the four products alone"
# Tokens at a time: enough to fill the tensor cores, few enough that a chunk's scores are soon read again.
CHUNK_ROWS = {32768: 4096, 65536: 2048, 131072: 1024, 1048576: 256}


@dataclass(frozen=True)
class Contender:
    """One way to compute an op.

    Attributes:
        check: None for a bound that is no answer.
        compiles: takes torch.compile's time to set up.
    """

    name: str
    prepare: Callable[[Problem], Ready]
    check: Callable[[Problem, Any, Any], str | None] | None
    compiles: bool = False


def precise(precision: str, prepared: bool = False) -> Callable[[Problem], Ready]:
    """encode_topk at a precision, of prepared weights or not."""

    def prepare(problem: Problem) -> Ready:
        weights, k = problem.weights, problem.shape.k
        W, b = weights["W_enc"], weights["b_enc"]
        made = PreparedWeights(W) if prepared and usable(W) else None
        ready = Ready(lambda x: encode_topk(x, W, b, k=k, precision=precision, prepared=made))
        if made is None:
            return ready
        ready.call(problem.tokens[0][:1])  # a precision is prepared for at its second use
        return ready._replace(detail="prepared weights")

    return prepare


def chunk_rows(columns: int) -> int:
    """Rows of scores [rows, columns] that take about 256 MiB in bf16."""
    return next((rows for most, rows in sorted(CHUNK_ROWS.items()) if columns <= most), 128)


def chunked_encode(problem: Problem) -> Ready:
    rows = chunk_rows(problem.shape.F)
    return Ready(encode.in_chunks(problem, rows), f"{rows} rows")


def chunked_sae(problem: Problem) -> Ready:
    rows = chunk_rows(problem.shape.F)
    return Ready(sae.in_chunks(problem, rows, sae.pick_topk), f"{rows} rows")


def chunked_loss(problem: Problem) -> Ready:
    rows = chunk_rows(2 * problem.shape.F)
    return Ready(loss.in_chunks(problem.weights["W_U"], rows), f"{rows} rows")


def chunked_loss_train(problem: Problem) -> Ready:
    rows = chunk_rows(2 * problem.shape.F)
    return Ready(loss_train.in_chunks(problem, rows), f"{rows} rows")


def compiled(prepare: Callable[[Problem], Ready]) -> Callable[[Problem], Ready]:
    """torch.compile of a contender, for exactly its shape."""

    def prepare_compiled(problem: Problem) -> Ready:
        torch.compiler.reset()
        fast = torch.compile(prepare(problem).call, dynamic=False)
        fast(*problem.tokens)
        return Ready(fast)

    return prepare_compiled


def products(problem: Problem) -> Ready:
    """Both streams' logits, and nothing done with them."""
    W = problem.weights["W_U"]
    return Ready(lambda h_p, h_q, _: (functional.linear(h_p, W), functional.linear(h_q, W)))


def all_products(problem: Problem) -> Ready:
    """Both streams' logits, and gradients of logits that are given times W_U."""
    W, (T, _, V, _) = problem.weights["W_U"], problem.shape
    given = torch.zeros(T, V, dtype=problem.dtype, device=W.device)
    return Ready(lambda h_p, h_q, _: (functional.linear(h_p, W), functional.linear(h_q, W), given @ W, given @ W))


def check_selection(problem: Problem, expected: Tensor, output: tuple[Tensor, Tensor]) -> str | None:
    """`encode.check`, for bf16 contenders that round scores before they select too."""
    return encode.check(problem, expected, output)


def check_step(problem: Problem, expected: dict[str, Tensor], output: train.Step) -> str | None:
    """Shapes, and that all is finite; whether gradients are right is the gate's to say, where float64 fits."""
    for name, gradient in output[1].items():
        if gradient.shape != problem.weights[name].shape:
            return f"{name}: shape {list(gradient.shape)}, need {list(problem.weights[name].shape)}"
        if not bool(gradient.isfinite().all()):
            return f"{name}: not finite"
    return None


def check_loss(problem: Problem, expected: loss.Losses, output: loss.Losses) -> str | None:
    """Within what rounding logits to bf16 first costs, for the contenders that do."""
    rows = problem.sample().to(output[0].device)
    for name, got, want in zip(("ce_p", "ce_q", "kl"), output, expected, strict=False):
        wrong = far(name, got[rows], want, 4e-2)
        if wrong:
            return wrong
    return None


def check_sae(problem: Problem, expected: sae.Expected, output: Tensor) -> str | None:
    return relative_error("output", output[problem.sample().to(output.device)], expected.output, 0.3)


@dataclass(frozen=True)
class Op:
    """An op's contenders, ours first, and its right answer."""

    contenders: tuple[Contender, ...]
    expect: Callable[[Problem], Any]


OPS = {
    "encode": Op(
        (
            Contender(OURS, precise("exact"), check_selection),
            Contender(FAST, precise("fast"), check_selection),
            Contender(PREPARED, precise("exact", prepared=True), check_selection),
            Contender(SCREENED, precise("screened", prepared=True), check_selection),
            Contender(PRODUCT, encode.product, None),
            Contender(CHUNKED, chunked_encode, check_selection),
            Contender(encode.WHOLE, encode.whole, check_selection),
            Contender(COMPILED, compiled(encode.whole), check_selection, compiles=True),
        ),
        encode.expect,
    ),
    "decode": Op(
        (
            Contender(OURS, decode.ours, decode.check),
            Contender(decode.BAG, decode.bag, decode.check),
        ),
        decode.expect,
    ),
    "sae_topk": Op(
        (
            Contender(OURS, sae.ours, check_sae),
            Contender(CHUNKED, chunked_sae, check_sae),
            Contender(sae.SAELENS, sae.saelens_topk, check_sae),
            Contender(sae.SPARSIFY, sae.sparsify, check_sae),
        ),
        sae.expect,
    ),
    "sae_train": Op(
        (
            Contender(OURS, train.ours, check_step),
            Contender(train.TORCH, train.torch_dense, check_step),
            Contender(sae.SPARSIFY, train.sparsify, check_step),
        ),
        lambda problem: {},
    ),
    "loss": Op(
        (
            Contender(OURS, loss.ours, check_loss),
            Contender(PRODUCTS, products, None),
            Contender(CHUNKED, chunked_loss, check_loss),
            Contender(COMPILED, compiled(loss.whole), check_loss, compiles=True),
        ),
        loss.expect,
    ),
    "loss_train": Op(
        (
            Contender(OURS, loss_train.ours, loss_train.check),
            Contender(ALL_PRODUCTS, all_products, None),
            Contender(CHUNKED, chunked_loss_train, loss_train.check),
        ),
        loss_train.expect,
    ),
    "gather_matmul": Op(
        (
            Contender(OURS, gather_matmul.ours, gather_matmul.check),
            Contender(gather_matmul.INDEXED, gather_matmul.indexed, gather_matmul.check),
            Contender(gather_matmul.BATCHED, gather_matmul.batched, gather_matmul.check),
        ),
        gather_matmul.expect,
    ),
}


# torch.compile takes up to half a minute per shape, and calls the same products.
COMPILED_SHAPES = (GPT2_WIDE, LLAMA, LOSSES[0])


def of(case: Case, compiles: bool = True) -> Op:
    """The op of a case, with a compiled contender at a few shapes, or none; prepared where that is another call.

    For 16 bits without a pre_bias there is nothing to prepare.
    """
    op, bf16 = OPS[case.op], case.dtype == torch.bfloat16
    compiles = compiles and bf16 and case.shape in COMPILED_SHAPES
    kept = (one for one in op.contenders if compiles or not one.compiles)
    return Op(tuple(one for one in kept if not (bf16 and one.name == PREPARED)), op.expect)
