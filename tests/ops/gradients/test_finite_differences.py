"""Gradients of the ops by finite differences, of both orders; what has no second, and tangents, are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk

OPS = torch.ops.saekernels


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def double_samples() -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    def f(*shape: int) -> Tensor:
        return leaf(*shape, dtype=torch.float64)

    indices, offsets = torch.tensor([3, 0, 1, 6, 3], dtype=torch.int32), torch.tensor([0, 2, 2, 5])
    targets = torch.tensor([0, 6, -100])
    dense = torch.tensor([[0, 6], [1, 1], [2, 3]])
    encoder = (f(3, 4), f(7, 4), f(7), f(4))
    return {
        **{
            f"encode_topk_{activation}": (
                lambda x, W, b, p, activation=activation: (
                    sk.encode_topk(x, W, b, k=3, pre_bias=p, activation=activation).values
                ),
                encoder,
            )
            for activation in ("relu", "none", "abs")
        },
        "encode_threshold": (lambda x, W, b, p: sk.encode_threshold(x, W, b, 0.3, pre_bias=p).values, encoder),
        "topk": (lambda s: sk.topk(s, 3).values, (f(2, 6),)),
        "decode": (lambda v, W, b: sk.decode(v, dense, W, b), (f(3, 2), f(7, 4), f(4))),
        "decode_csr": (lambda v, W, b: sk.decode_csr(v, indices, offsets, W, b), (f(5), f(7, 4), f(4))),
        "gather_dot": (lambda a, W: OPS.gather_dot(a, W, indices, offsets), (f(3, 4), f(7, 4))),
        "gather_matmul": (lambda a, W: sk.gather_matmul(a, W, indices, offsets), (f(2, 3, 4), f(7, 4))),
        "segment_outer": (lambda v, a: OPS.segment_outer(v, indices, offsets, a, 7), (f(5), f(3, 4))),
        "segment_sum": (lambda v: OPS.segment_sum(v, indices, 7), (f(5),)),
        "linear_ce_kl": (
            lambda p, q, W, b: sk.linear_ce_kl(p, q, W, targets, bias=b, softcap=3.0)[:3],
            (f(3, 4), f(3, 4), f(7, 4), f(7)),
        ),
        "linear_ce_kl of streams": (
            lambda p, q, W, b: sk.linear_ce_kl(p, q, W, targets, bias=b, softcap=3.0)[:3],
            (f(3, 4), f(2, 3, 4), f(7, 4), f(7)),
        ),
    }


@pytest.mark.parametrize("name", double_samples())
def test_gradcheck(name: str) -> None:
    function, inputs = double_samples()[name]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", [name for name in double_samples() if "linear_ce_kl" not in name])
def test_second_gradients(name: str) -> None:
    function, inputs = double_samples()[name]
    assert torch.autograd.gradgradcheck(function, inputs)


def test_a_second_derivative_of_the_loss_is_refused() -> None:
    h, W, targets = leaf(3, 4), leaf(7, 4), torch.tensor([0, 6, 1])
    (d_h,) = torch.autograd.grad(sk.linear_ce_kl(h, h.detach() * 2, W, targets).kl.sum(), h, create_graph=True)
    with pytest.raises(NotImplementedError, match="linear_ce_kl: a second derivative was asked for"):
        d_h.square().sum().backward()


def test_forward_mode_is_refused_rather_than_dropped() -> None:
    from torch.autograd import forward_ad

    x, W = torch.randn(3, 8), torch.randn(16, 8)
    ops, indices, targets = (
        torch.ops.saekernels,
        torch.zeros(3, 8, dtype=torch.int32),
        torch.zeros(3, dtype=torch.int64),
    )
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        for call in (
            lambda: sk.encode_topk(dual, W, k=3),
            lambda: sk.encode_threshold(dual, W),
            lambda: sk.topk(dual, 3),
            lambda: sk.decode(dual, indices, W),
            lambda: sk.linear_ce_kl(dual, dual, W, targets),
            lambda: ops.encode_topk(dual, W, k=3),
            lambda: ops.encode_topk(x, W.requires_grad_(), dual[0, :1].expand(16), k=3),
            lambda: ops.topk(dual, 3),
            lambda: ops.decode(dual, indices, W),
        ):
            with pytest.raises(NotImplementedError, match="got a forward-mode tangent; only reverse-mode"):
                call()
        sk.encode_topk(x, W, k=3)
    with pytest.raises(NotImplementedError, match="x: got a forward-mode tangent"):
        torch.func.jacfwd(lambda a: sk.encode_topk(a, W, k=3).values.sum())(x[0])
    for name, call in (
        ("x", lambda a: ops.encode_topk(a, W, k=3)[0]),
        ("x", lambda a: ops.encode_threshold(a, W, None, torch.zeros(()))[0]),
        ("scores", lambda a: ops.topk(a, 3)[0]),
        ("W_dec", lambda a: ops.decode(x, indices, a)),
        ("h_p", lambda a: ops.linear_ce_kl(a, x, W, targets)[0]),
    ):
        with pytest.raises(NotImplementedError, match=f"{name}: got a forward-mode tangent"):
            torch.func.jvp(call, (x,), (x,))
