"""The ops and SAEs under torch.func: gradients of each, of batches, of gradients; what has no meaning is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

import saekernels as sk

INDICES, OFFSETS = torch.tensor([3, 0, 1, 6, 3], dtype=torch.int32), torch.tensor([0, 2, 2, 5])
LATENTS, TARGETS = torch.tensor([[0, 6], [1, 1], [2, 3]], dtype=torch.int32), torch.tensor([0, 6, -100])
ENCODER = ((3, 4), (7, 4), (7,), (4,))

# Name -> (what is called, the shapes of its arguments), in float64; what an argument must be is said by its place.
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "encode_topk": (lambda x, W, b, p: sk.encode_topk(x, W, b, k=3, pre_bias=p).values, ENCODER),
    "topk": (lambda s: sk.topk(s, 3).values, ((2, 6),)),
    "decode": (lambda v, W, b: sk.decode(v, LATENTS, W, b), ((3, 2), (7, 4), (4,))),
    "decode_csr": (lambda v, W, b: sk.decode_csr(v, INDICES, OFFSETS, W, b), ((5,), (7, 4), (4,))),
    "gather_matmul": (lambda a, W: sk.gather_matmul(a, W, INDICES, OFFSETS), ((2, 3, 4), (7, 4))),
    "linear_ce_kl": (lambda p, q, W, b: sk.linear_ce_kl(p, q, W, TARGETS, bias=b).kl, ((3, 4), (3, 4), (7, 4), (7,))),
}


def total(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: function(*args).square().sum()


def by_autograd(function: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
    leaves = [arg.clone().requires_grad_() for arg in args]
    return torch.autograd.grad(function(*leaves), leaves)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_jacobians_and_batches(name: str) -> None:
    function, shapes = CALLS[name]
    args = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    every = tuple(range(len(args)))
    assert all(map(torch.equal, grad(total(function), every)(*args), by_autograd(total(function), *args)))
    jacobian = torch.autograd.functional.jacobian(function, tuple(args))
    torch.testing.assert_close(jacrev(function, every)(*args), jacobian)

    batch = [torch.stack([arg, arg * 1.5, arg + 0.1], -1) for arg in args]
    calls = [[arg[..., i] for arg in batch] for i in range(3)]
    assert torch.equal(vmap(function, -1)(*batch), torch.stack([function(*call) for call in calls]))
    for i, each in enumerate(zip(*vmap(grad(total(function), every), -1)(*batch), strict=True)):
        torch.testing.assert_close(each, by_autograd(total(function), *calls[i]))


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("linear_ce_kl", "gather_matmul")])
def test_second_derivatives(name: str) -> None:
    function, shapes = CALLS[name]
    args = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    want = torch.autograd.functional.hessian(lambda first: total(function)(first, *args[1:]), args[0])
    torch.testing.assert_close(jacrev(grad(total(function)))(*args), want)


def test_a_batch_of_rows_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """x is batched, W is not: a row's bits are the same, and W is read once."""
    from saekernels.backends import registry

    x, W, calls = torch.randn(5, 3, 8), torch.randn(40, 8), list[Any]()
    select = registry.select
    monkeypatch.setattr(registry, "select", lambda op, *rest: (calls.append(op), select(op, *rest))[1])
    got = vmap(lambda one: tuple(sk.encode_topk(one, W, k=4)))(x)
    assert calls == ["encode_topk"]
    assert all(map(torch.equal, got, sk.encode_topk(x, W, k=4)))
    hints = torch.zeros(3)  # one per row of a call, so that the batch cannot be one
    assert torch.equal(vmap(lambda one: sk.encode_topk(one, W, k=4, hint=hints).values)(x), got[0])


def test_an_ensemble_of_saes() -> None:
    """functional_call, as torch's tutorial has it: stacked parameters, one gradient for each member."""
    saes = [sk.SAE(8, 32, sk.TopK(4)) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(saes)  # type: ignore[arg-type]
    x = torch.randn(6, 8)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return (functional_call(saes[0], parameters, (x,)) - x).square().sum()

    found = vmap(grad(loss))(stacked)
    for at, sae in enumerate(saes):
        (sae(x) - x).square().sum().backward()
        for name, parameter in sae.named_parameters():
            torch.testing.assert_close(found[name][at], parameter.grad)


def test_what_has_no_meaning_is_refused() -> None:
    x, W = torch.randn(3, 8), torch.randn(16, 8)
    with pytest.raises(NotImplementedError, match="encode_threshold: got a batch by vmap, whose calls would each have"):
        vmap(lambda one: sk.encode_threshold(one, W).values)(x)
    with pytest.raises(NotImplementedError, match="topk: got a batch of size 0 by vmap, need at least 1"):
        vmap(lambda one: sk.topk(one, 2).values)(torch.randn(0, 8))
    sae = sk.SAE(8, 16, sk.JumpReLU())
    with pytest.raises(NotImplementedError, match="encode_threshold: got a batch by vmap"):
        vmap(sae)(x)
    assert torch.equal(grad(lambda one: sk.encode_threshold(one, W).values.sum())(x), by_autograd(
        lambda one: sk.encode_threshold(one, W).values.sum(), x)[0])  # fmt: skip
    with pytest.raises(NotImplementedError, match="linear_ce_kl: a second derivative was asked for"):
        jacrev(grad(lambda h: sk.linear_ce_kl(h, x, W, TARGETS.clamp(min=0)).kl.sum()))(x)
    with pytest.raises(NotImplementedError, match="x: got a forward-mode tangent"):
        torch.func.jvp(lambda one: sk.encode_topk(one, W, k=3).values, (x,), (x,))
