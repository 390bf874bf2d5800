"""Prepared weights on the Triton backend: the same bits, changes noticed by host and device, fewer bytes per call."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk
from oracle import same_bits
from triton_cases import DTYPES, encoder, module, skip_unless_interpreting

skip_unless_interpreting()
from saekernels.backends import triton as backend  # noqa: E402

preparing = import_module("saekernels.ops.prepare")  # which a function hides
block, looking = module("encode.prepared.block"), module("encode.prepared.look")


def tensors(value: Any) -> list[Tensor]:
    """All of those in nested tuples."""
    if isinstance(value, tuple):
        return [tensor for one in value for tensor in tensors(one)]
    return [value.view(torch.uint8) if value.element_size() == 1 else value] if isinstance(value, Tensor) else []


def ready(case: Any, precision: str, prepared: Tensor | None) -> list[Tensor]:
    """What the kernels of an encoder get."""
    return tensors(module("encode.encoder_inputs").encoder(*case, precision, None, prepared))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("precision", "F", "d"), [("exact", 1, 1), ("exact", 600, 37), ("fast", 9, 37), ("screened", 5, 37)]
)
def test_kernels_get_the_same_bits(dtype: torch.dtype, precision: str, F: int, d: int) -> None:
    case = encoder(3, F, d, dtype)
    columns = case._replace(W=case.W.t().contiguous().t(), bias=None)
    for one in (case, columns, case._replace(pre_bias=None))[: 2 if precision == "screened" else 3]:
        made = block.prepare(one.W, one.pre_bias, precision)
        plain = ready(one, precision, None)
        assert same_bits(ready(one, precision, made), plain)
        # And once more from nothing that is right, as after a write that only the device can see.
        made.zero_()
        assert same_bits(ready(one, precision, made), plain)


def test_codes_above_thresholds_have_the_same_bits() -> None:
    case = encoder(2, 40, 24, torch.float16)
    above = backend.encode_threshold(*case, torch.tensor(0.8))
    assert same_bits(backend.encode_threshold(*case, torch.tensor(0.8), block.prepare(case.W, case.pre_bias)), above)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("write", ["in place", "through data", "pre_bias", "pre_bias through data"])
def test_changes_are_noticed(dtype: torch.dtype, write: str) -> None:
    """By a new block where the host sees them, and in the old one where only the device does."""
    x, W, bias, pre_bias = encoder(2, 40, 24, dtype)
    made = sk.prepare(W)

    def codes(prepared: Any = None) -> Any:
        return sk.encode_topk(x, W, bias, pre_bias=pre_bias, k=5, prepared=prepared, backend="triton")

    def asked() -> Tensor | None:
        return made.block_for(W, pre_bias, "exact", "triton")

    before = codes()
    asked(), asked()
    assert same_bits(codes(made), before)
    old = made.block
    assert made.nbytes == backend.prepare(W, pre_bias).numel() > 0
    changed = pre_bias if "pre_bias" in write else W
    if "data" in write:
        changed.data.mul_(-1.5)
    else:
        changed[changed.shape[0] // 2] *= 30
    after = codes()
    assert not same_bits(after, before)
    assert same_bits(codes(made), after)
    assert asked() is not None
    assert same_bits(codes(made), after)
    assert (made.block is old) == ("data" in write or (dtype == torch.float32 and write == "pre_bias"))


def test_another_pre_bias_or_precision_is_prepared_for_at_its_second_use_in_a_row() -> None:
    _, W, _, pre_bias = encoder(3, 9, 24, torch.float16)
    made, other = sk.prepare(W), pre_bias + 1
    for p, precision, nbytes in (
        (pre_bias, "exact", None),
        (other, "exact", None),
        (pre_bias, "exact", None),
        (pre_bias, "exact", 16384 + 96 + 48),
        (pre_bias, "fast", None),
        (None, "exact", None),
        (None, "exact", 0),
        (None, "screened", None),
        (None, "screened", 16384 + 3 * 48 + 9 * 128),
    ):
        found = made.block_for(W, p, precision, "triton")
        assert (None if found is None else found.numel()) == nbytes
    assert made.block_for(W, pre_bias, "exact", "reference") is None
    first = made.block_for(W, None, "screened", "triton")
    for new in (torch.zeros(24), torch.zeros(24)):  # never the same twice, whose place in memory may be
        assert made.block_for(W, new, "exact", "triton") is None
        del new
    assert first is made.block


@pytest.mark.parametrize("layout", ["rows", "columns", "part"])
@pytest.mark.parametrize(("F", "d"), [(60, 30), (1, 5000), (97, 211), (4096, 15)])
def test_elements_spread_evenly_are_looked_at(F: int, d: int, layout: str) -> None:
    """4,096 of them or all, every column among them; what lies between rows is not read."""
    whole = torch.randn(F, d + 3)
    W = {"rows": whole[:, :d].contiguous(), "columns": whole[:, :d].t().contiguous().t(), "part": whole[:, :d]}[layout]
    step, samples = looking.step_of(F, d), torch.zeros(looking.SAMPLES, dtype=torch.int32)
    assert math.gcd(step, d) == 1
    assert len(range(0, F * d, step)) in (F * d, *range(looking.SAMPLES // 3, looking.SAMPLES + 1))
    pre_bias, biases = torch.randn(d), torch.zeros(d, dtype=torch.int32)
    assert looking.look(W, pre_bias, samples, biases) > 0
    assert looking.look(W, pre_bias, samples, biases) == 0
    places = list(range(0, F * d, step))
    assert samples[: len(places)].view(torch.float32).tolist() == [float(W[at // d, at % d]) for at in places]
    whole[:, d:] = 5.0
    W[places[-1] // d, places[-1] % d] = torch.nan
    pre_bias[d // 2] = torch.nan
    assert looking.look(W, pre_bias, samples, biases) == 2
    assert looking.look(W, pre_bias, samples, biases) == 0, "a NaN is what it was"


def test_a_block_of_other_weights_is_refused() -> None:
    x, W, bias, pre_bias = encoder(3, 60, 24, torch.float16)
    for made in (block.prepare(W), block.prepare(W[:50], pre_bias), torch.zeros(3)):
        with pytest.raises(
            ValueError, match=r"prepared: not made from weights of this shape: got \d+ bytes, need 16720"
        ):
            backend.encode_topk(x, W, bias, pre_bias, 5, "none", made)


def test_a_wrong_pre_bias_is_the_ops_to_tell() -> None:
    x, W, _, _ = encoder(3, 60, 24, torch.float16)
    made = sk.prepare(W)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"pre_bias: got shape \[9\], need \[d\]"):
            sk.encode_topk(x, W, k=5, pre_bias=torch.zeros(9), prepared=made, backend="triton")


def test_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ready is used, and kept; what is not is left out, and nothing is made."""
    W = torch.randn(9, 24)
    made = sk.prepare(W)
    for _ in range(2):
        held = made.block_for(W, None, "exact", "triton")
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_capturing", lambda W: True)
        assert made.block_for(W, None, "exact", "triton") is held
        assert made.block_for(W, None, "screened", "triton") is None
        assert made.block_for(W, None, "screened", "triton") is None
        assert not preparing.usable(W)
        W[3] *= 2
        assert made.block_for(W, None, "exact", "triton") is None
        with pytest.raises(RuntimeError, match="prepare: a CUDA graph is being captured"):
            made.refresh()
    assert preparing.usable(W)
    assert made.block_for(W, None, "exact", "triton") is not held
    assert any(one is held for one in made._captured), "the graph reads it still"
