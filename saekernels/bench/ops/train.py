"""Forward and backward of a TopK SAE, mean squared error, all gradients: ours, torch, SAELens and sparsify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from saekernels.bench.measure import peers
from saekernels.bench.measure.contenders import OURS, Contender, Op, Ready, Work, relative_error
from saekernels.bench.measure.shapes import (
    QUICK_SAE_SHAPES,
    TRAIN_SHAPES,
    Problem,
    Shape,
    dense_bytes,
    matrix_bytes,
    sae_problem,
)
from saekernels.bench.ops.sae import SAELENS, SPARSIFY
from saekernels.ops import decode, encode_topk

SPARSE = "saekernels, sparse gradients"
TORCH = "torch"
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
# Of a gradient's norm. A latent that ties within rounding may be taken for another.
_ALLOWED = {torch.float32: 1e-2, torch.bfloat16: 0.3}

# The loss, and the gradients by name, W_enc's as [F, d].
Step = tuple[Tensor, dict[str, Tensor]]


class Expected(NamedTuple):
    """float64: the loss; gradients of the biases; those of the matrices times one random vector, [F] each."""

    loss: Tensor
    b_enc: Tensor
    b_dec: Tensor
    W_enc_projected: Tensor
    W_dec_projected: Tensor


def loss_of(output: Tensor, x: Tensor) -> Tensor:
    """Squared error, summed over the width, mean over tokens: SAELens's loss."""
    return (output - x).square().sum(-1).mean()


def _step(forward: Callable[[Tensor], Tensor], named: dict[str, Tensor]) -> Ready:
    """One call: forward, loss, gradients of all `named` weights; nothing accumulates between calls."""

    def call(x: Tensor) -> Step:
        with torch.enable_grad():
            loss = loss_of(forward(x), x)
            return loss.detach(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))

    return Ready(call)


def _leaves(problem: Problem) -> dict[str, Tensor]:
    return {name: problem.weights[name].detach().requires_grad_() for name in _NAMES}


def _ours(problem: Problem, sparse_grad: bool) -> Ready:
    named, k = _leaves(problem), problem.shape.k
    W_enc, b_enc, W_dec, b_dec = named.values()

    def forward(x: Tensor) -> Tensor:
        values, indices = encode_topk(x, W_enc, b_enc, k=k, pre_bias=b_dec, sparse_grad=sparse_grad)
        return decode(values, indices, W_dec, b_dec, sparse_grad=sparse_grad)

    return _step(forward, named)


def ours(problem: Problem) -> Ready:
    """Gradients as dense [F, d] tensors, like the others'."""
    return _ours(problem, sparse_grad=False)


def ours_sparse(problem: Problem) -> Ready:
    """Gradients of the matrices as sparse tensors of the rows used."""
    return _ours(problem, sparse_grad=True)


def torch_dense(problem: Problem) -> Ready:
    """Plain autograd: product, topk, embedding bag."""
    named, k = _leaves(problem), problem.shape.k
    W_enc, b_enc, W_dec, b_dec = named.values()

    def forward(x: Tensor) -> Tensor:
        values, indices = functional.linear(x - b_dec, W_enc, b_enc).topk(k)
        return functional.embedding_bag(indices, W_dec, per_sample_weights=values.relu(), mode="sum") + b_dec

    return _step(forward, named)


def saelens(problem: Problem) -> Ready:
    """Its TopK training SAE: encode and decode as in its training step, without a mask of dead latents."""
    module = peers.saelens_training(problem.weights, problem.shape.k)
    call = _step(module.__call__, dict(module.named_parameters())).call

    def transposed(x: Tensor) -> Step:
        loss, gradients = call(x)
        return loss, {**gradients, "W_enc": gradients["W_enc"].T}

    return Ready(transposed)


def sparsify(problem: Problem) -> Ready:
    """Its fused encoder and its decoder."""
    module = peers.sparsify(problem.weights, problem.shape.k)

    def forward(x: Tensor) -> Tensor:
        codes = module.encode(x)
        return module.decode(codes.top_acts, codes.top_indices)

    theirs = (module.encoder.weight, module.encoder.bias, module.W_dec, module.b_dec)
    return _step(forward, dict(zip(_NAMES, theirs, strict=True)))


def _probe(d: int) -> Tensor:
    return torch.empty(d, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(7))


def expect(problem: Problem) -> Expected:
    """The formulas, in float64, a block of tokens at a time."""
    (x,), (T, d, F, k) = problem.tokens, problem.shape
    W_enc, b_enc, W_dec, b_dec = (problem.weights[name].double() for name in _NAMES)
    probe, loss = _probe(d), torch.zeros((), dtype=torch.float64)
    d_b_enc, P_enc, P_dec = (torch.zeros(F, dtype=torch.float64) for _ in range(3))
    d_out_sum = torch.zeros(d, dtype=torch.float64)
    for rows in x.double().split(128):
        values, indices = (torch.addmm(b_enc, rows - b_dec, W_enc.T)).topk(k)
        active = W_dec[indices]
        error = torch.einsum("tk,tkd->td", values.relu(), active) + b_dec - rows
        loss += error.square().sum() / T
        d_out = 2 * error / T
        d_values = torch.einsum("td,tkd->tk", d_out, active) * (values > 0)
        flat = indices.flatten()
        d_b_enc.index_add_(0, flat, d_values.flatten())
        P_enc.index_add_(0, flat, (d_values * ((rows - b_dec) @ probe)[:, None]).flatten())
        P_dec.index_add_(0, flat, (values.relu() * (d_out @ probe)[:, None]).flatten())
        d_out_sum += d_out.sum(0)
    return Expected(loss, d_b_enc, d_out_sum - d_b_enc @ W_enc, P_enc, P_dec)


def check(problem: Problem, expected: Expected, output: Step) -> str | None:
    """The loss and all four gradients."""
    loss, gradients = output
    limit, probe = _ALLOWED[problem.dtype], _probe(problem.shape.d)
    dense = {name: gradient.to_dense().double() for name, gradient in gradients.items()}
    pairs = (
        ("loss", loss[None], expected.loss[None]),
        ("gradient of b_enc", dense["b_enc"], expected.b_enc),
        ("gradient of b_dec", dense["b_dec"], expected.b_dec),
        ("gradient of W_enc", dense["W_enc"] @ probe, expected.W_enc_projected),
        ("gradient of W_dec", dense["W_dec"] @ probe, expected.W_dec_projected),
    )
    return next((wrong for name, got, want in pairs if (wrong := relative_error(name, got, want, limit))), None)


def contenders(_: torch.dtype) -> Sequence[Contender]:
    return [
        Contender(OURS, ours),
        Contender(SPARSE, ours_sparse),
        Contender(TORCH, torch_dense),
        Contender(SAELENS, saelens),
        Contender(SPARSIFY, sparsify),
    ]


def work(problem: Problem, _: Expected) -> Work:
    """The encoder's product, and five sparse products of T k d: decode, two gradients of codes, two of weights."""
    T, d, F, k = problem.shape
    used = min(T * k, F)
    # x; W_enc; used rows of W_dec in, of both gradients out.
    return Work((T * d + F * d + 3 * used * d) * problem.dtype.itemsize, 2 * T * d * F + 10 * T * k * d)


def needs(shape: Shape, dtype: torch.dtype) -> int:
    """Weights, gradients and a peer's copy; float64 copies for the check; SAELens's five [T, F]."""
    return 6 * matrix_bytes(shape, dtype) + 3 * matrix_bytes(shape, torch.float64) + 5 * dense_bytes(shape, dtype)


SAE_TRAIN = Op(
    name="sae_train",
    make=sae_problem,
    contenders=contenders,
    expect=expect,
    check=check,
    work=work,
    needs=needs,
    shapes=TRAIN_SHAPES,
    quick_shapes=QUICK_SAE_SHAPES[:1],
    baselines=(TORCH, SPARSIFY),
)
