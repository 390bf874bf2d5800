"""Calls past the dispatcher: only where it has nothing to do, with the same bits and the same errors as through it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import saekernels as sk
from oracle import same_bits
from saekernels.backends import cpu
from saekernels.ops._direct import direct

X, W, B = torch.randn(3, 16), torch.randn(40, 16), torch.randn(40)
VALUES, LATENTS = torch.randn(3, 4), torch.randint(0, 40, (3, 4), dtype=torch.int32)
OFFSETS = torch.tensor([0, 4, 8, 12])

CALLS: dict[str, Callable[[Tensor], Any]] = {
    "encode_topk": lambda x: sk.encode_topk(x, W, B, k=4),
    "encode_threshold": lambda x: sk.encode_threshold(x, W, B, 0.5),
    "topk": lambda x: sk.topk(x, 4),
    "decode": lambda x: sk.decode(x[:, :4], LATENTS, W),
    "decode_csr": lambda x: sk.decode_csr(x[:, :4].reshape(-1), LATENTS.view(-1), OFFSETS, W),
}
# decode is made of decode_csr, which is what autograd, modes and profiles see.
SEEN = {name: name for name in CALLS} | {"decode": "decode_csr"}


class Dispatched(TorchFunctionMode):
    """Changes nothing, but sees functions, above autograd, so calls go through the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Watching(TorchDispatchMode):
    """The same for ops, below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def outputs(made: Any) -> tuple[Tensor, ...]:
    return (made,) if isinstance(made, Tensor) else tuple(made)


def plain_tensors() -> dict[str, Tensor]:
    with torch.inference_mode():
        inference = torch.randn(3, 4)
    return {
        "tensor": torch.randn(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(3, 4), requires_grad=False),
        "view": torch.randn(8, 3).T[:, ::2],
        "inference tensor": inference,
    }


@pytest.mark.parametrize("kind", plain_tensors())
def test_plain_tensors_are_computed_at_once(kind: str) -> None:
    value = plain_tensors()[kind]
    for context in (nullcontext(), torch.no_grad(), torch.inference_mode()):
        with context:
            assert direct((value, None))


class Subclass(Tensor):
    pass


def others() -> dict[str, Tensor]:
    plain = torch.randn(3, 4)
    return {
        "needs a gradient": torch.randn(3, 4, requires_grad=True),
        "subclass": plain.as_subclass(Subclass),
        "negated lazily": torch.complex(plain, plain).conj().imag,
        "zeros without memory": torch._efficientzerotensor((3, 4)),
        "meta": plain.to("meta"),
        "sparse": plain.to_sparse(),
        "mkldnn": plain.to_mkldnn(),
        "no tensor": [1.0],  # type: ignore[dict-item]
    }


def test_tensors_of_one_gpu_are_and_of_two_places_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        first, second, host = (torch.empty(3, device=place) for place in ("cuda:0", "cuda:1", "cpu"))
    monkeypatch.setattr("saekernels.ops._direct._TYPES", (FakeTensor,))
    assert direct((first, None, first))
    assert not direct((first, second))
    assert not direct((first, host))
    assert not direct((None, host, first))
    assert not direct((first, first.detach().requires_grad_()))


@pytest.mark.parametrize("kind", others())
def test_other_tensors_go_through_the_dispatcher(kind: str) -> None:
    assert not direct((others()[kind],))
    assert not direct((torch.randn(2), None, others()[kind]))


def contexts() -> dict[str, AbstractContextManager[Any]]:
    return {
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "function mode": Dispatched(),
        "dispatch mode": Watching(),
        "fake tensors": torch._subclasses.fake_tensor.FakeTensorMode(),
        "default device": torch.device("cpu"),
        "profiler": torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
        "forward mode": torch.autograd.forward_ad.dual_level(),
    }


@pytest.mark.parametrize("kind", contexts())
def test_every_mode_has_calls_go_through_the_dispatcher(kind: str) -> None:
    value = torch.randn(3, 4)
    with contexts()[kind]:
        assert not direct((value,))
    assert direct((value,))


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_by_either_road(name: str) -> None:
    at_once = outputs(CALLS[name](X))
    with Dispatched() as seen:
        dispatched = outputs(CALLS[name](X))
    assert f"saekernels.{SEEN[name]}" in seen.names
    assert same_bits(at_once, dispatched)
    assert [value.shape for value in at_once] == [value.shape for value in dispatched]
    assert not any(value.requires_grad for value in at_once)
    needing = X.clone().requires_grad_()
    assert same_bits(at_once, outputs(CALLS[name](needing)))
    assert outputs(CALLS[name](needing))[0].requires_grad
    with torch.no_grad():
        assert same_bits(at_once, outputs(CALLS[name](needing)))
    with torch.inference_mode():
        made = outputs(CALLS[name](needing))
        assert same_bits(at_once, made)
        assert all(value.is_inference() for value in made)


@pytest.mark.parametrize("name", CALLS)
def test_modes_profiles_and_vmap_see_the_op(name: str) -> None:
    expected = outputs(CALLS[name](X))
    with Watching() as watching:
        CALLS[name](X)
    assert f"saekernels.{SEEN[name]}.default" in watching.names
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        CALLS[name](X)
    assert f"saekernels::{SEEN[name]}" in {event.key for event in profile.key_averages()}
    if name != "encode_threshold":  # as many entries as there are: nothing to stack
        stacked = outputs(torch.vmap(CALLS[name])(torch.stack([X, X])))
        assert same_bits(tuple(value[1] for value in stacked), expected)


def test_traces_and_transforms_have_calls_go_through_the_dispatcher() -> None:
    seen = []

    def call(x: Tensor) -> Tensor:
        seen.append(direct((x,)) or direct((W,)))
        return sk.topk(x, 4).values

    torch.jit.trace(call, (X,), check_trace=False)
    graph = torch.fx.experimental.proxy_tensor.make_fx(call)(X).graph
    assert torch.ops.saekernels.topk.default in [node.target for node in graph.nodes]
    torch.func.functionalize(call)(X)
    torch.vmap(call)(X[None])
    assert seen == [False] * 4


@pytest.mark.parametrize("name", CALLS)
def test_views_that_are_negated_lazily_are_read_as_they_are(name: str) -> None:
    negated = torch.complex(X, -X).conj().imag
    assert negated.is_neg()
    assert same_bits(outputs(CALLS[name](negated)), outputs(CALLS[name](X)))


def test_tensors_that_outlived_a_transform_are_read_through_their_wrapper() -> None:
    kept = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(X)
    assert same_bits(sk.topk(kept[0], 4), sk.topk(X, 4))


def test_codes_of_a_call_do_not_depend_on_the_call_before() -> None:
    """Offsets of few rows are kept between calls, for whichever k and in inference mode or not."""
    with torch.inference_mode():
        sk.decode(VALUES, LATENTS, W)
    for rows, k in ((3, 4), (3, 2), (1, 4), (0, 4), (3, 0)):
        values, latents = VALUES[:rows, :k], LATENTS[:rows, :k]
        want = torch.einsum("tk,tkd->td", values.double(), W[latents.long()].double())
        torch.testing.assert_close(sk.decode(values, latents, W).double(), want, rtol=1e-5, atol=1e-5)
        needing = W.clone().requires_grad_()
        sk.decode(values, latents, needing).sum().backward()
        assert needing.grad is not None


def test_counters_count_calls_by_either_road() -> None:
    if cpu.available() is not None:
        pytest.skip("no native module")
    for context in (nullcontext(), Dispatched()):
        before = sum(cpu.stats()[name] for name in ("direct_rows", "screened_rows"))
        with context:
            sk.encode_topk(X, W, B, k=4)
        assert sum(cpu.stats()[name] for name in ("direct_rows", "screened_rows")) == before + 3
