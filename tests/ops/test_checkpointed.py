"""Ops in a block whose forward is computed again in the backward pass: saved tensors are to be had once only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import saekernels as sk
from saekernels.sae.entries import encode_among

T, D, F, K = 5, 6, 12, 3


def _values(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return sk.encode_topk(x, W, b, k=K).values


OPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "encode_topk": _values,
    "encode_threshold": lambda x, W, b: sk.encode_threshold(x, W, b, 0.1).values,
    "encode_at": lambda x, W, b: sk.encode_at(x, W, b, torch.tensor([[0, 3]] * T, dtype=torch.int32)),
    "encode_among": lambda x, W, b: encode_among(x, W, b, torch.tensor([1, 4, 7]), k=2).values,
    "topk": lambda x, W, b: sk.topk(x @ W.T + b, K).values,
    "decode": lambda x, W, b: sk.decode(_values(x, W, b), torch.zeros(T, K, dtype=torch.int32), W, x[0]),
    "linear_ce_kl": lambda x, W, b: sk.linear_ce_kl(x, x * 2, W, torch.arange(T), bias=b).kl,
}


@pytest.mark.parametrize("name", OPS)
def test_gradients_are_those_without_checkpointing(name: str) -> None:
    torch.manual_seed(0)
    given = [torch.randn(T, D), torch.randn(F, D), torch.randn(F)]
    for one in given:
        one.requires_grad_()

    def block(*given: Tensor) -> Tensor:
        return OPS[name](*(one * 1.5 for one in given))

    plain = torch.autograd.grad(block(*given).square().sum(), given, allow_unused=True)
    loss = checkpoint(block, *given, use_reentrant=False).square().sum()  # type: ignore[union-attr]
    for got, expected in zip(torch.autograd.grad(loss, given, allow_unused=True), plain, strict=True):
        assert (got is None) == (expected is None)
        assert got is None or torch.equal(got, expected)
