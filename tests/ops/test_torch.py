"""The ops as torch citizens: opcheck, torch.compile, autocast, fake tensors."""

from __future__ import annotations

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
