"""A step of Adam of all weights of an SAE: ours and torch's; plain, or with decoder rows kept at unit norm.

Gradients are the same at every step, so that the answer after any number of steps is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekernels.bench.measure.contenders import OURS, Contender, Op, Ready, Work, relative_error
from saekernels.bench.measure.shapes import QUICK_SAE_SHAPES, Problem, Shape, matrix_bytes, normal, sae_problem
from saekernels.optim import Adam

TORCH, FOREACH, FUSED = "torch", "torch, foreach", "torch, fused"
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
_LR, _EPS = 1e-2, 1e-3  # an eps that a gradient near 0 feels, whose sign would else hang on its rounding
_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_GRADIENT_SEED = 11


class Stepped(NamedTuple):
    """The weights by name, after so many steps."""

    weights: dict[str, Tensor]
    steps: int


def _make(shape: Shape, dtype: torch.dtype) -> Problem:
    """The weights of `sae_problem` with decoder rows of unit norm, and "gradient of ..." each; no tokens count."""
    problem = sae_problem(shape._replace(T=1), dtype)
    problem.weights["W_dec"] = torch.nn.functional.normalize(problem.weights["W_dec"], dim=1)
    for seed, name in enumerate(_NAMES, start=_GRADIENT_SEED):
        problem.weights[f"gradient of {name}"] = normal(tuple(problem.weights[name].shape), seed).to(dtype)
    return Problem(shape, dtype, problem.tokens, problem.weights)


def _leaves(problem: Problem) -> dict[str, torch.nn.Parameter]:
    """Copies with the gradients, which contenders share."""
    made = {name: torch.nn.Parameter(problem.weights[name].clone()) for name in _NAMES}
    for name, param in made.items():
        param.grad = problem.weights[f"gradient of {name}"]
    return made


def _ready(params: dict[str, torch.nn.Parameter], step: Callable[[], object]) -> Ready:
    done = 0

    def call(*_: Tensor) -> Stepped:
        nonlocal done
        step()
        done += 1
        return Stepped({name: one.detach() for name, one in params.items()}, done)

    return Ready(call)


def _ours(problem: Problem, rows: bool) -> Ready:
    params = _leaves(problem)
    groups = [{"params": [one], "project": rows, "unit_norm": rows} if name == "W_dec" else {"params": [one]}
              for name, one in params.items()]  # fmt: skip
    return _ready(params, Adam(groups, lr=_LR, eps=_EPS).step)


def _torchs(problem: Problem, rows: bool, way: dict[str, Any]) -> Ready:
    """Rows in passes by hand: the gradient at right angles, the step, unit norms."""
    params = _leaves(problem)
    optimizer = torch.optim.Adam(params.values(), lr=_LR, eps=_EPS, **way)
    W_dec, gradient = params["W_dec"], problem.weights["gradient of W_dec"]
    projected = torch.empty_like(gradient) if rows else gradient
    W_dec.grad = projected

    def step() -> None:
        if rows:
            along = (gradient * W_dec).sum(1, keepdim=True)
            torch.sub(gradient, torch.mul(W_dec, along, out=projected), out=projected)
        optimizer.step()
        if rows:
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    return _ready(params, step)


def _sample(problem: Problem, name: str) -> Tensor:
    """Rows that are held against float64: some of a matrix, all of a bias as one."""
    value = problem.weights[name]
    return value[None] if value.dim() == 1 else value[:: max(1, len(value) // 32)]


def expect(problem: Problem) -> dict[str, tuple[Tensor, Tensor]]:
    """Sampled rows of weights and gradients, float64, before the first step."""
    return {
        name: (_sample(problem, name).double(), _sample(problem, f"gradient of {name}").double()) for name in _NAMES
    }


def _check(rows: bool) -> Callable[[Problem, dict[str, tuple[Tensor, Tensor]], Stepped], str | None]:
    def check(problem: Problem, expected: dict[str, tuple[Tensor, Tensor]], output: Stepped) -> str | None:
        after = Problem(problem.shape, problem.dtype, (), output.weights)
        for name, (p, gradient) in expected.items():
            p, m, v = p.clone(), torch.zeros_like(p), torch.zeros_like(p)
            for step in range(1, output.steps + 1):
                g = gradient
                if rows and name == "W_dec":
                    g = g - (g * p).sum(1, keepdim=True) / p.square().sum(1, keepdim=True) * p
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                p = p - _LR * m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + _EPS)
                if rows and name == "W_dec":
                    p = p / p.norm(dim=1, keepdim=True)
            if wrong := relative_error(name, _sample(after, name), p, _ALLOWED[problem.dtype]):
                return wrong
        return None

    return check


def work(problem: Problem, _: object) -> Work:
    """Weights, gradients and both moments in, all but gradients out; some 14 operations each."""
    elements = sum(problem.weights[name].numel() for name in _NAMES)
    return Work(7 * elements * problem.dtype.itemsize, 14 * elements)


def _op(name: str, rows: bool) -> Op:
    def contenders(_: torch.dtype) -> Sequence[Contender]:
        ways = {TORCH: {"foreach": False}, FOREACH: {"foreach": True}, FUSED: {"fused": True}}
        theirs = [Contender(name, partial(_torchs, rows=rows, way=way)) for name, way in ways.items()]
        return [Contender(OURS, partial(_ours, rows=rows)), *theirs]

    return Op(
        name=name,
        make=_make,
        contenders=contenders,
        expect=expect,
        check=_check(rows),
        work=work,
        # Each contender's two matrices and their moments; the gradients; what foreach makes on the way.
        needs=lambda shape, dtype: 32 * matrix_bytes(shape, dtype),
        shapes=(Shape(1, 768, 24576, 32),),
        quick_shapes=QUICK_SAE_SHAPES[1:],
        baselines=(FUSED,),
    )


ADAM = _op("adam", rows=False)
ADAM_ROWS = _op("adam_rows", rows=True)
