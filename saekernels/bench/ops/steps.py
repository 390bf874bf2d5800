"""A whole training step of each class: loss, gradients and Adam, in torch on dense latents and in the tools' trainers.

The learning rate is 0: an optimizer does all its work, and every round steps from the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saekernels.bench.measure import peers, trainers
from saekernels.bench.measure.contenders import OURS, Contender, Op, Ready, Work, relative_error
from saekernels.bench.measure.shapes import (
    QUICK_SAE_SHAPES,
    Problem,
    Shape,
    dense_bytes,
    matrix_bytes,
    normal,
    sae_problem,
    threshold_for,
)
from saekernels.bench.ops import losses
from saekernels.bench.ops.sae import DICTIONARY, SAELENS, SPARSIFY
from saekernels.optim import Adam

DENSE = "torch, dense"
TORCH_ADAM = "saekernels, torch's Adam"
# Of the loss, and of a gradient's norm: an entry within rounding of its threshold may be taken or left.
_ALLOWED = {torch.float32: (1e-4, 1e-2), torch.bfloat16: (2e-2, 0.3)}
# dictionary_learning's losses that are a multiple of ours: Matryoshka's has its five prefixes' mean, weighted by 1 / 5.
_MULTIPLES = {"topk": 1.0, "batch_topk": 1.0, "matryoshka": 1 / 25}


class Stepped(NamedTuple):
    """A step's loss, and its gradients by name; none where a tool cleared them or made them smaller."""

    loss: Tensor
    gradients: dict[str, Tensor]


class Expected(NamedTuple):
    """Of dense float32 latents in torch: loss, gradients of vectors, those of matrices times a random vector [d]."""

    loss: Tensor
    gradients: dict[str, Tensor]


def _make(kind: str, shape: Shape, dtype: torch.dtype) -> Problem:
    """About k latents of a row are active, as late in training, whatever the class; decoder rows have unit norm."""
    problem = sae_problem(shape, dtype)
    weights = problem.weights
    weights["W_dec"] = normalize(weights["W_dec"], dim=1)
    level = threshold_for(shape)
    if kind == "jumprelu":
        weights["threshold"] = torch.full((shape.F,), level)
    elif kind == "standard":
        weights["b_enc"] = weights["b_enc"] - level
    elif kind == "gated":
        weights["b_mag"] = weights.pop("b_enc")
        weights["b_gate"] = weights["b_mag"] - level
        weights["r_mag"] = normal((shape.F,), 5, 0.1).to(dtype)
    return problem


def _ready(loss_of: Callable[[losses.Weights], losses.Loss], adam: Callable[..., Any], problem: Problem) -> Ready:
    """Weights are shared by all contenders, which leave them as they are."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in problem.weights.items()}
    optimizer, loss_of_batch = adam(leaves.values(), lr=0.0), loss_of(leaves)

    def call(x: Tensor) -> Stepped:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = loss_of_batch(x)
            loss.backward()
        optimizer.step()
        return Stepped(loss.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None})

    return Ready(call)


def _ours(kind: str, adam: Callable[..., Any], problem: Problem) -> Ready:
    return _ready(lambda w: losses.sparse(kind, w, problem.shape.k), adam, problem)


def _dense(kind: str, problem: Problem) -> Ready:
    return _ready(lambda w: losses.dense(kind, w, problem.shape.k), _TORCHS, problem)


_TORCHS = partial(torch.optim.Adam, fused=True)


def _saelens(kind: str, problem: Problem) -> Ready:
    """A step of its SAETrainer; pre-activations are not rescaled by decoder norms, as the others' are not."""
    T, d, F, k = problem.shape
    options: dict[str, dict[str, Any]] = {
        "jumprelu": {"l0_coefficient": losses.PENALTY, "jumprelu_bandwidth": losses.BANDWIDTH},
        "standard": {"l1_coefficient": losses.PENALTY},
        "gated": {"l1_coefficient": losses.PENALTY},
    }
    own = options.get(kind, {"rescale_acts_by_decoder_norm": False})
    sae = trainers.saelens_sae(kind, d, F, k, apply_b_dec_to_input=True, **own)
    _put(sae, problem.weights, {})
    trainer = trainers.saelens_trainer(sae, iter(()), batch=T, steps=10**6, lr=0.0)

    def call(x: Tensor) -> Stepped:
        with torch.enable_grad():
            out = trainer.step(x)
        trainer.n_training_steps += 1
        return Stepped(out.loss.detach(), {})

    return Ready(call)


def _dictionary(kind: str, problem: Problem) -> Ready:
    """An `update` of its trainer, with its own clipping and projection."""
    _, d, F, k = problem.shape
    trainer = trainers.dictionary_trainer(kind, d, F, k, lr=0.0)
    _put(trainer.ae, problem.weights, {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "encoder.bias": "b_enc"})
    seen = trainers.losses_of(trainer)

    def call(x: Tensor) -> Stepped:
        with torch.enable_grad():
            trainer.update(len(seen) + 1, x)  # step 0 starts with a geometric median
        return Stepped(torch.tensor(seen[-1] / _MULTIPLES[kind]), {})

    return Ready(call)


def _sparsify(problem: Problem) -> Ready:
    """What its Trainer does with the activations of a batch; it has no other class than TopK with a loss of ours."""
    coder = peers.sparsify({name: weight.clone() for name, weight in problem.weights.items()}, problem.shape.k)
    optimizer = torch.optim.Adam(coder.parameters(), lr=0.0)

    def call(x: Tensor) -> Stepped:
        coder.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(0)).square().sum()
        with torch.enable_grad():
            fvu = coder(x, total_variance=variance).fvu
            fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        return Stepped(fvu.detach() * variance / len(x), {})

    return Ready(call)


@torch.no_grad()
def _put(module: Any, weights: dict[str, Tensor], names: dict[str, str]) -> None:
    """Every parameter's value, by its name here; a matrix whose latents are columns is transposed."""
    for path, value in module.named_parameters():
        given = weights[names.get(path, path)]
        value.copy_(given if value.shape == given.shape else given.t())


def _probe(gradient: Tensor) -> Tensor:
    """A vector as it is, a matrix [F, d] times a random vector: [F]."""
    if gradient.dim() == 1:
        return gradient
    return gradient.float() @ torch.empty(gradient.shape[1]).normal_(generator=torch.Generator().manual_seed(7))


def _expect(kind: str, problem: Problem) -> Expected:
    wide = Problem(problem.shape, torch.float32, (), {name: one.float() for name, one in problem.weights.items()})
    found = _dense(kind, wide).call(problem.tokens[0].float())
    return Expected(found.loss, {name: _probe(gradient) for name, gradient in found.gradients.items()})


def check(problem: Problem, expected: Expected, output: Stepped) -> str | None:
    """The loss, and every gradient that there is; in half precision, which blurs its band, not the threshold's."""
    of_loss, of_gradients = _ALLOWED[problem.dtype]
    if wrong := relative_error("loss", output.loss[None], expected.loss[None], of_loss):
        return wrong
    for name, gradient in output.gradients.items():
        if name == "threshold" and problem.dtype != torch.float32:
            continue
        if wrong := relative_error(f"gradient of {name}", _probe(gradient), expected.gradients[name], of_gradients):
            return wrong
    return None


def work(problem: Problem, _: object) -> Work:
    """The encoder's product, five sparse products of T k d, and Adam: 7 numbers moved and 14 operations a weight."""
    T, d, F, k = problem.shape
    elements, used = 2 * F * d, min(T * k, F)
    moved = T * d + F * d + 3 * used * d + 7 * elements
    return Work(moved * problem.dtype.itemsize, 2 * T * d * F + 10 * T * k * d + 14 * elements)


def needs(shape: Shape, dtype: torch.dtype) -> int:
    """Of each contender gradients, moments and what it copies; some ten [T, F] of the densest."""
    return 40 * matrix_bytes(shape, dtype) + 10 * dense_bytes(shape, dtype)


def _op(kind: str) -> Op:
    def contenders(dtype: torch.dtype) -> Sequence[Contender]:
        theirs = [Contender(SAELENS, partial(_saelens, kind))] if dtype == torch.float32 else []
        if theirs and kind in _MULTIPLES:
            theirs.append(Contender(DICTIONARY, partial(_dictionary, kind)))
        if theirs and kind == "topk":
            theirs.append(Contender(SPARSIFY, _sparsify))
        return [
            Contender(OURS, partial(_ours, kind, Adam)),
            Contender(TORCH_ADAM, partial(_ours, kind, _TORCHS)),
            Contender(DENSE, partial(_dense, kind)),
            *theirs,
        ]

    return Op(
        name=f"train_{kind}",
        make=partial(_make, kind),
        contenders=contenders,
        expect=partial(_expect, kind),
        check=check,
        work=work,
        needs=needs,
        shapes=(Shape(1024, 768, 24576, 32),),
        quick_shapes=QUICK_SAE_SHAPES[:1],
        baselines=(DENSE,),
    )


STEPS = tuple(_op(kind) for kind in trainers.CLASSES)
