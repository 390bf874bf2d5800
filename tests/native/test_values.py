"""The native backend's total-order keys and its conversions between fp32 and the 16-bit types."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from native_helpers import LEVELS, best_level_again, needs_native  # noqa: F401
from saekernels.backends import cpu
from saekernels.backends.cpu import native

pytestmark = needs_native

FLOAT32 = st.floats(width=32, allow_nan=False)


@given(st.tuples(FLOAT32, st.integers(0, 2**31 - 1)), st.tuples(FLOAT32, st.integers(0, 2**31 - 1)))
def test_keys_order_as_scores_then_indices(a: tuple[float, int], b: tuple[float, int]) -> None:
    key_a, key_b = (native.module().make_key(score, index, False) for score, index in (a, b))
    assert (key_a > key_b) == ((a[0], -a[1]) > (b[0], -b[1]))


@given(FLOAT32 | st.just(math.nan), st.integers(0, 2**31 - 1), st.booleans())
def test_keys_give_back_what_went_in(score: float, index: int, negative: bool) -> None:
    key = native.module().make_key(score, index, negative)
    back = native.module().key_score(key)
    assert native.module().key_index(key) == index
    assert math.isnan(back) if math.isnan(score) else back == score
    assert key & 1 == negative


def test_nan_of_any_sign_and_payload_ranks_above_infinity() -> None:
    above = native.module().make_key(math.inf, 0, False)
    for bits in (0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF):
        (nan,) = struct.unpack("<f", struct.pack("<I", bits))
        assert native.module().make_key(nan, 5, False) > above
        assert native.module().make_key(nan, 5, False) < native.module().make_key(math.nan, 4, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [*LEVELS, "scalar"])
def test_every_16_bit_value_survives(level: str, dtype: torch.dtype) -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    table = bits.view(dtype).view(2**11, 2**5)
    if level == "scalar":
        code = native.DTYPE_CODES[dtype]
        got = torch.tensor([native.module().round_trip(float(value), code) for value in table.flatten()]).view_as(table)
    else:
        cpu.set_simd_level(level)
        rows = torch.arange(2**11, dtype=torch.int32)
        got = cpu.decode(torch.ones(2**11, dtype=dtype), rows, torch.arange(2**11 + 1), table, None).float()
    torch.testing.assert_close(got, table.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [*LEVELS, "scalar"])
def test_rounding_is_to_nearest_even(level: str, dtype: torch.dtype) -> None:
    grid = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).float()
    grid = grid[grid.isfinite()].sort().values
    halfway = (grid[1:].double() + grid[:-1].double()).div(2).float()  # exact in fp32
    near = torch.cat([halfway, torch.nextafter(halfway, grid[1:]), torch.nextafter(halfway, grid[:-1])])
    limit = torch.finfo(dtype).max
    over = torch.tensor([limit * (1 + 2.0**-12), limit * (1 + 2.0**-8), 1e-45, -1e-45, 3.4e38, -3.4e38])
    values = torch.cat([near[:: 1 if level != "scalar" else 23], over])
    if level == "scalar":
        code = native.DTYPE_CODES[dtype]
        got = torch.tensor([native.module().round_trip(float(value), code) for value in values])
    else:
        cpu.set_simd_level(level)  # x = 1 times an fp32 bias: the encoder's value is the bias, rounded to x's dtype
        zero = torch.zeros(values.numel(), 1, dtype=dtype)
        top, index = cpu.encode_topk(torch.ones(1, 1, dtype=dtype), zero, values, None, values.numel(), "none")
        got = torch.empty_like(values).scatter_(0, index[0].long(), top[0].float())
    torch.testing.assert_close(got, values.to(dtype).float(), rtol=0, atol=0)
