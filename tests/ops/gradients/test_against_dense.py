"""Gradients of the ops against those of dense torch, in every precision; sparse ones; codes changed in place."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import saekernels as sk


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def test_gradients_match_dense_torch(backend: str) -> None:
    """A whole TopK autoencoder: our gradients in float32 against autograd through dense float64 codes."""
    x, W, b, p, D, c = leaf(12, 16), leaf(60, 16), leaf(60), leaf(16), leaf(60, 16), leaf(16)
    values, indices = sk.encode_topk(x, W, b, k=6, pre_bias=p, backend=backend)
    loss = (sk.decode(values, indices, D, c, backend=backend) - x).square().sum()
    ours = torch.autograd.grad(loss, (x, W, b, p, D, c))

    wide = [value.detach().double().requires_grad_() for value in (x, W, b, p, D, c)]
    X, V, B, P, E, C = wide
    pre = (X - P) @ V.T + B
    codes = torch.zeros_like(pre).scatter(1, indices.long(), pre.gather(1, indices.long()).relu())
    theirs = torch.autograd.grad((codes @ E + C - X).square().sum(), wide)
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_pre_bias_alone_is_that_beside_x(backend: str) -> None:
    """With many entries it is one product with W_enc, with few a row of it for each; in half precision as well."""
    for latents, dtype in itertools.product((5, 40), (torch.float32, torch.bfloat16)):
        x, W, b, p = (torch.randn(*shape).to(dtype) for shape in ((9, 6), (latents, 6), (latents,), (6,)))
        weights = torch.randn(9, 4)
        found = []
        for leaves in ((p.clone().requires_grad_(),), (p.clone().requires_grad_(), x.clone().requires_grad_())):
            values, _ = sk.encode_topk(leaves[-1] if len(leaves) > 1 else x, W, b, k=4, pre_bias=leaves[0],
                                       activation="none", backend=backend)  # fmt: skip
            found.append(torch.autograd.grad((values.float() * weights).sum(), leaves)[0])
        close = 1e-5 if dtype == torch.float32 else 4e-2
        torch.testing.assert_close(found[0], found[1], rtol=close, atol=close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_gradients(backend: str, dtype: torch.dtype) -> None:
    """Gradients in half precision stay within a few units of the dense float64 ones, and keep their dtypes."""
    x, W, D = (torch.randn(*s).to(dtype).requires_grad_() for s in ((8, 16), (40, 16), (40, 16)))
    p = torch.randn(16, requires_grad=True)
    values, indices = sk.encode_topk(x, W, k=5, pre_bias=p, activation="none", backend=backend)
    weight = torch.randn(8, 16).to(dtype)
    ours = torch.autograd.grad((sk.decode(values, indices, D, backend=backend) * weight).sum(), (x, W, D, p))
    assert [g.dtype for g in ours] == [dtype, dtype, dtype, torch.float32]
    wide = [value.detach().double().requires_grad_() for value in (x, W, D, p)]
    X, V, E, P = wide
    codes = ((X - P) @ V.T).gather(1, indices.long())
    out = torch.einsum("tk,tkd->td", codes, E[indices.long()])
    theirs = torch.autograd.grad((out * weight.double()).sum(), wide)
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.008
    for got, expected in zip(ours, theirs, strict=True):
        assert (got.double() - expected).norm() <= tolerance * expected.norm()


def test_codes_may_be_changed_in_place_under_autograd() -> None:
    x, W = torch.randn(2, 5, 8), torch.randn(16, 8, requires_grad=True)
    sk.encode_topk(x, W, k=3).values.mul_(2).sum().backward()
    doubled = W.grad.clone()
    W.grad = None
    (2 * sk.encode_topk(x, W, k=3).values).sum().backward()
    assert torch.equal(W.grad, doubled)
    sk.topk(torch.randn(2, 5, 8, requires_grad=True), 3).values.mul_(2).sum().backward()


@pytest.mark.parametrize("pre_bias", [False, True])
def test_sparse_gradients_are_the_touched_rows_of_the_dense_ones(pre_bias: bool) -> None:
    x, W, W_dec = torch.randn(6, 8), torch.randn(50, 8), torch.randn(50, 8)
    b_pre = torch.randn(8) if pre_bias else None
    grads = []
    for sparse in (False, True):
        weights = [part.clone().requires_grad_() for part in (W, W_dec)]
        codes = sk.encode_topk(x, weights[0], k=3, pre_bias=b_pre, sparse_grad=sparse)
        above = sk.encode_threshold(x, weights[0], None, 2.0, pre_bias=b_pre, sparse_grad=sparse)
        out = sk.decode(*codes, weights[1], sparse_grad=sparse)
        loss = out.square().sum() + sk.decode_csr(*above, weights[1], sparse_grad=sparse).square().sum()
        loss.backward()
        grads.append([weight.grad for weight in weights])
    touched = set(codes.indices.flatten().tolist()) | set(above.indices.tolist())
    for dense, sparse in zip(*grads, strict=True):
        assert sparse.is_sparse
        assert not dense.is_sparse
        assert set(sparse.coalesce().indices().flatten().tolist()) == touched
        assert len(touched) < 50
        torch.testing.assert_close(sparse.to_dense(), dense)


def test_sparse_adam_takes_them() -> None:
    sae_x, W = torch.randn(20, 8), torch.randn(40, 8, requires_grad=True)
    before = W.detach().clone()
    optimizer = torch.optim.SparseAdam([W], lr=1e-2)
    codes = sk.encode_topk(sae_x, W, k=2, sparse_grad=True)
    codes.values.sum().backward()
    optimizer.step()
    moved = (W.detach() != before).any(1).nonzero().flatten().tolist()
    assert moved == sorted(set(codes.indices[codes.values > 0].flatten().tolist()))
