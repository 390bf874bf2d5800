"""The ops as torch citizens: opcheck, gradcheck, torch.compile, autocast, fake tensors, gradients of every order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import saekernels as sk

OPS = torch.ops.saekernels


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def csr() -> tuple[Tensor, Tensor, Tensor]:
    offsets = torch.tensor([0, 2, 2, 5])
    return leaf(5), torch.tensor([3, 0, 1, 6, 3], dtype=torch.int32), offsets


def samples() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    values, indices, offsets = csr()
    targets = torch.tensor([0, 6, -100])
    x, W, b, pre = leaf(3, 4), leaf(7, 4), leaf(7), leaf(4)
    return {
        "encode_topk": ((x, W, b, pre), {"k": 2, "activation": "abs"}),
        "encode_topk wide": ((x.bfloat16(), W.bfloat16()), {"k": 3, "activation": "none", "wide": True}),
        "encode_topk scaled": ((x, W, b, pre, None, None, leaf(7).detach().exp()), {"k": 2}),
        "encode_threshold": ((x, W, b, torch.tensor(0.5), pre), {}),
        "encode_threshold scaled": ((x, W, b, torch.tensor(0.5), pre, None, leaf(7).detach().exp()), {}),
        "encode_threshold wide": ((x.bfloat16(), W.bfloat16(), None, torch.tensor(0.5)), {"wide": True}),
        "topk": ((leaf(3, 9), 4), {}),
        "decode": ((leaf(3, 2), torch.tensor([[0, 6], [1, 1], [2, 3]], dtype=torch.int32), W, leaf(4)), {}),
        "decode_csr": ((values, indices, offsets, W, leaf(4)), {}),
        "decode_csr wide": ((values.bfloat16(), indices, offsets, W.bfloat16()), {"wide": True}),
        "gather_dot": ((x, W, indices, offsets), {}),
        "gather_matmul": ((leaf(2, 3, 4), W, indices, offsets), {}),
        "gather_matmul of half W": ((leaf(2, 3, 4), W.bfloat16(), indices, offsets), {"wide": True}),
        "segment_outer": ((values, indices, offsets, x, 7), {}),
        "segment_sum": ((values, indices, 7), {}),
        "linear_ce_kl": ((x, leaf(3, 4), W, targets, b), {"softcap": 3.0}),
        "linear_ce_kl of streams": ((x, leaf(2, 3, 4), W, targets, b), {"softcap": 3.0}),
    }


@pytest.mark.parametrize("name", samples())
def test_opcheck(name: str, backend: str) -> None:
    args, kwargs = samples()[name]
    opcheck(getattr(OPS, name.partition(" ")[0]).default, args, {**kwargs, "backend": backend})


@pytest.mark.parametrize(
    "needs", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize("biased", [True, False])
def test_opcheck_of_the_loss_gradient(needs: tuple[bool, bool, bool], biased: bool) -> None:
    """Outputs that nobody needs are empty, on fake tensors too."""
    targets = torch.tensor([0, 6, -100])
    grads, losses = torch.randn(3, 3), torch.rand(3, 3)
    streams = (torch.randn(3, 4).bfloat16(), torch.randn(3, 4).bfloat16(), torch.randn(7, 4).bfloat16())
    bias = torch.randn(7) if biased else None
    opcheck(OPS.linear_ce_kl_backward.default, (*grads, *losses, *streams, targets, bias, 3.0, -100, *needs))


def double_samples() -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    def f(*shape: int) -> Tensor:
        return leaf(*shape, dtype=torch.float64)

    _, indices, offsets = csr()
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


def test_compile_without_recompiling_for_batch_sizes(backend: str) -> None:
    W, b, D = torch.randn(64, 8), torch.randn(64), torch.randn(64, 8)
    compilations = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal compilations
        compilations += 1
        return graph.forward

    def model(x: Tensor) -> Tensor:
        codes = sk.encode_topk(x, W, b, k=4, backend=backend)
        return sk.decode(codes.values, codes.indices, D, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counting)
    for rows in (5, 7, 33):
        x = torch.randn(rows, 8)
        assert torch.equal(compiled(x), model(x))
    assert compilations == 1


@pytest.mark.parametrize("name", ["topk", "decode", "csr", "loss"])
def test_compile_forward_and_backward(name: str, backend: str) -> None:
    W, D = leaf(64, 8), leaf(64, 8)

    def topk(x: Tensor) -> Tensor:
        return sk.topk(x @ W.T, 5, backend=backend).values.sum()

    def decode(x: Tensor) -> Tensor:
        codes = sk.encode_topk(x, W, k=5, backend=backend)
        return sk.decode(codes.values, codes.indices, D, backend=backend).square().sum()

    def csr(x: Tensor) -> Tensor:
        codes = sk.encode_threshold(x, W, None, 0.5, backend=backend)
        return sk.decode_csr(*codes, D, backend=backend).square().sum()

    def loss(x: Tensor) -> Tensor:
        targets = torch.arange(x.shape[0])
        return sum(value.sum() for value in sk.linear_ce_kl(x, x * 1.1, W, targets, backend=backend)[:3])  # type: ignore

    function = {"topk": topk, "decode": decode, "csr": csr, "loss": loss}[name]
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
        for rows in (3, 6):
            x = leaf(rows, 8)
            eager = torch.autograd.grad(function(x), x)
            assert torch.equal(torch.autograd.grad(compiled(x), x)[0], eager[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_as_linear_does(dtype: torch.dtype, backend: str) -> None:
    x, W, b, D = torch.randn(6, 16), torch.randn(40, 16), torch.randn(40), torch.randn(40, 16)
    with torch.autocast("cpu", dtype):
        codes = sk.encode_topk(x, W, b, k=4, backend=backend)
        out = sk.decode(codes.values, codes.indices, D, backend=backend)
        loss = sk.linear_ce_kl(x, x, W, torch.zeros(6, dtype=torch.int64), backend=backend)
    expected = sk.encode_topk(x.to(dtype), W.to(dtype), b, k=4, backend=backend)
    assert codes.values.dtype == out.dtype == dtype
    assert loss.ce_p.dtype == torch.float32
    assert torch.equal(codes.values, expected.values)
    assert torch.equal(codes.indices, expected.indices)
    assert torch.equal(out, sk.decode(*expected, D.to(dtype), backend=backend))


def test_autocast_gradients_reach_float32_parameters(backend: str) -> None:
    x, W = torch.randn(6, 16), leaf(40, 16)
    with torch.autocast("cpu", torch.bfloat16):
        sk.encode_topk(x, W, k=4, backend=backend).values.float().sum().backward()
    assert W.grad is not None
    assert W.grad.dtype == torch.float32
    assert W.grad.abs().sum() > 0


def test_fake_cuda_tensors_have_the_right_shapes() -> None:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        x = torch.empty(2, 5, 8, device="cuda", dtype=torch.bfloat16)
        W = torch.empty(64, 8, device="cuda", dtype=torch.bfloat16)
        values, indices = sk.encode_topk(x, W, k=4)
        assert values.shape == indices.shape == (2, 5, 4)
        assert values.device.type == "cuda"
        assert values.dtype == torch.bfloat16
        assert indices.dtype == torch.int32
        assert sk.decode(values, indices, W).shape == (2, 5, 8)
        h = x.view(10, 8)
        out = sk.linear_ce_kl(h, h, W, torch.empty(10, device="cuda", dtype=torch.int64))
        assert out.kl.shape == (10,)
        assert out.kl.dtype == torch.float32


def test_huge_virtual_scores_do_not_overflow() -> None:
    """More than 2^31 elements, by a stride of 0: shapes and addresses are 64-bit."""
    rows = torch.arange(70000, dtype=torch.float32).expand(40000, 70000)[39998:]
    got = sk.topk(rows, 2)
    assert got.indices.tolist() == [[69999, 69998]] * 2


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
