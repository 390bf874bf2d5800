"""Prepared weights: the same bits with them, made again when the weights change, owned by the SAE."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Iterator

import pytest
import torch

import saekernels as sk
from native_helpers import needs_native
from oracle import same_bits
from saekernels.backends import cpu
from saekernels.sae.activations import BatchTopK, Gated, TopK

pytestmark = needs_native


@pytest.fixture(autouse=True, params=["fp32", "bf16", "int16", "int8"])
def screen(request: pytest.FixtureRequest) -> Iterator[str]:
    cpu.set_screening(request.param)
    yield request.param
    cpu.set_screening("auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("F", "d"), [(1, 1), (33, 7), (500, 64), (1000, 130)])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_the_same_bits_with_and_without(dtype: torch.dtype, F: int, d: int, layout: str) -> None:
    x, W, b = torch.randn(19, d).to(dtype), torch.randn(F, d).to(dtype), torch.randn(F).to(dtype)
    W = W if layout == "rows" else W.T.contiguous().T
    ready = sk.prepare(W)
    for rows in (19, 2):
        plain = sk.encode_topk(x[:rows], W, b, k=min(F, 9))
        assert same_bits(sk.encode_topk(x[:rows], W, b, k=min(F, 9), prepared=ready), plain)
        assert same_bits(
            sk.encode_threshold(x[:rows], W, b, 0.3, prepared=ready), sk.encode_threshold(x[:rows], W, b, 0.3)
        )


def test_its_size_is_what_is_documented(screen: str) -> None:
    F, d = 1000, 130
    rows = 1024
    row_bytes = {"fp32": 0, "bf16": 320, "int16": 320, "int8": 192}[screen]
    constants = 12 if screen in ("int16", "int8") else 8
    assert sk.prepare(torch.randn(F, d)).nbytes == 64 + rows * (constants + row_bytes)


@pytest.mark.parametrize("write", ["in place", "through data", "other screen"])
def test_changed_weights_are_noticed(write: str, screen: str) -> None:
    x, W = torch.randn(12, 40), torch.randn(900, 40)
    ready = sk.prepare(W)
    first = sk.encode_topk(x, W, k=5, prepared=ready)
    if write == "in place":
        W[7] *= 30
    elif write == "through data":
        W.data.copy_(torch.randn(900, 40))
    else:
        cpu.set_screening("fp32" if screen != "fp32" else "bf16")
    again = sk.encode_topk(x, W, k=5, prepared=ready)
    assert same_bits(again, sk.encode_topk(x, W, k=5))
    assert same_bits(again, first) == (write == "other screen")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["rows", "columns", "part"])
@pytest.mark.parametrize(("F", "d"), [(60, 30), (3, 1), (1, 4096), (900, 40), (97, 211), (4096, 15)])
def test_the_sample_is_every_so_many_th_element(F: int, d: int, layout: str, dtype: torch.dtype) -> None:
    """4,096 of them, spread evenly, one in eight at each look, or all: what lies between rows is not read."""
    whole = torch.randn(F, d + 3).to(dtype)
    W = {"rows": whole[:, :d].contiguous(), "columns": whole[:, :d].T.contiguous().T, "part": whole[:, :d]}[layout]
    step = next(step for step in itertools.count((F * d // 4096) | 1, 2) if math.gcd(step, d) == 1)
    before = [cpu.fingerprint(W, look) for look in range(cpu.LOOKS)]
    places = range(0, F * d, step)
    for n, at in (*list(enumerate(places))[:70], *list(enumerate(places))[-70:]):
        kept = W.data[at // d, at % d].clone()
        W.data[at // d, at % d] = 77.0
        noticed = {look for look in range(cpu.LOOKS) if cpu.fingerprint(W, look) != before[look]}
        assert noticed == ({n % cpu.LOOKS} if F * d > 4096 else set(range(cpu.LOOKS))), f"element {at}"
        W.data[at // d, at % d] = kept
    whole[:, d:] = 5.0
    assert [cpu.fingerprint(W, look) for look in range(cpu.LOOKS)] == before


def test_a_write_past_the_version_counter_is_noticed_at_once_or_in_eight_uses(screen: str) -> None:
    W = torch.randn(9000, 40)
    x, ready = torch.randn(12, 40), sk.prepare(W)
    for write, uses in (("all", 1), ("one", cpu.LOOKS)):
        stale = ready.block.clone()
        if write == "all":
            W.data.mul_(1.5)
        else:
            W.data.view(-1)[87 * 5] = 1e3  # of the sample, which is every 87th
        for _ in range(uses):
            sk.encode_topk(x, W, k=5, prepared=ready)
        assert not torch.equal(ready.block, stale)
        assert same_bits(sk.encode_topk(x, W, k=5, prepared=ready), sk.encode_topk(x, W, k=5))


@pytest.mark.parametrize(("F", "d"), [(4096, 15), (8192, 12)])
def test_every_column_is_looked_at(F: int, d: int) -> None:
    """The sample's step is as long as a row, or half of one, before it is made to have no factor in common with it."""
    W = torch.randn(F, d)
    for column in range(d):
        before = [cpu.fingerprint(W, look) for look in range(cpu.LOOKS)]
        W.data[:, column] *= 3
        assert [cpu.fingerprint(W, look) for look in range(cpu.LOOKS)] != before, f"column {column}"


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_a_lazy_sign_is_of_the_weights_that_are_prepared(rows: int) -> None:
    """The imaginary part of a conjugate is a negative view: what lies in memory has the other sign."""
    W = torch.complex(torch.randn(64, 16), torch.randn(64, 16)).conj().imag
    x = torch.randn(rows, 16)
    assert W.is_neg()
    assert same_bits(sk.encode_topk(x, W, k=4, prepared=sk.prepare(W)), sk.encode_topk(x, W.resolve_neg(), k=4))
    sae = sk.SAE(16, 64, TopK(4))
    sae.W_enc = torch.nn.Parameter(W, requires_grad=False)
    first = sae(x)
    assert all(torch.equal(sae(x), first) for _ in range(3))


def test_a_partial_write_past_the_version_counter_needs_a_refresh(screen: str) -> None:
    W = torch.randn(9000, 40)
    ready = sk.prepare(W)
    W.data[::2] *= 3
    ready.refresh()
    x = torch.randn(12, 40)
    assert same_bits(sk.encode_topk(x, W, k=5, prepared=ready), sk.encode_topk(x, W, k=5))


def test_wrong_uses_are_named() -> None:
    x, W = torch.randn(12, 40), torch.randn(900, 40)
    with pytest.raises(ValueError, match=r"prepared: made from another tensor, of shape \[900, 40\]"):
        sk.encode_topk(x, W.clone(), k=5, prepared=sk.prepare(W))
    with pytest.raises(TypeError, match="prepared: got Tensor, need what prepare"):
        sk.encode_topk(x, W, k=5, prepared=W)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="W_enc: got dtype int64"):
        sk.prepare(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"W_enc: got dtype float64, need one of float32, bfloat16, float16$"):
        sk.prepare(W.double())
    with torch.inference_mode(), pytest.raises(ValueError, match="W_enc: got an inference tensor"):
        sk.prepare(torch.randn(4, 4))
    with pytest.raises(ValueError, match="prepared: not made from weights of this shape"):
        torch.ops.saekernels.encode_topk(x, W, None, None, torch.zeros(64, dtype=torch.uint8), k=5)


@pytest.mark.parametrize("activation", [TopK(6), BatchTopK(), Gated()])
def test_an_sae_prepares_at_the_second_use_of_its_weights(activation: object) -> None:
    sae = sk.SAE(32, 400, activation)  # type: ignore[arg-type]
    x = torch.randn(20, 32)
    first = sae(x)
    assert sae._prepared is None
    assert torch.equal(sae(x), first)
    assert sae._prepared is not None
    with torch.no_grad():
        sae.W_enc.mul_(1.5)
    changed = sae(x)
    assert sae._prepared is None
    assert not torch.equal(changed, first)
    assert torch.equal(sae(x), changed)
    assert sae._prepared is not None
    for twin in (copy.deepcopy(sae), pickle.loads(pickle.dumps(sae))):
        assert twin._prepared is None
        assert torch.equal(twin(x), changed)
        assert torch.equal(twin(x), changed)
    assert torch.equal(sae.to(torch.bfloat16)(x.bfloat16()), sae(x.bfloat16()))


def test_training_never_prepares() -> None:
    sae = sk.SAE(16, 100, TopK(4))
    optimizer = torch.optim.SGD(sae.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(30, 16)
        (sae(x) - x).square().mean().backward()
        optimizer.step()
        assert sae._prepared is None


def test_autocast_and_compile_go_without() -> None:
    sae, x = sk.SAE(32, 400, TopK(6)), torch.randn(20, 32)
    sae(x), sae(x)
    ready = sk.prepare(sae.W_enc)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sk.encode_topk(x, sae.W_enc, k=6, prepared=ready)
        assert same_bits(cast, sk.encode_topk(x.bfloat16(), sae.W_enc.bfloat16(), k=6))
    compiled = torch.compile(sae, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), sae(x))


def test_weights_in_another_tensor_of_the_same_memory_are_noticed() -> None:
    x = torch.randn(20, 32)
    for change in ("assign", "replace", "functional", "parametrize"):
        sae = sk.SAE(32, 400, TopK(6))
        want = sae(x)
        assert torch.equal(sae(x), want)
        assert torch.equal(sae(x), want)
        if change == "assign":
            sae.load_state_dict(sae.state_dict(), assign=True)
        elif change == "replace":
            sae.W_enc = torch.nn.Parameter(sae.W_enc.detach())
        elif change == "functional":
            weights = {name: value.detach() for name, value in sae.named_parameters()}
            for _ in range(3):
                assert torch.equal(torch.func.functional_call(sae, weights, (x,)), want)
        else:
            torch.nn.utils.parametrizations.weight_norm(sae, "W_enc")
        for _ in range(3):
            torch.testing.assert_close(sae(x), want)
