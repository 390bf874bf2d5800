"""The native backend's total-order keys, its conversions between fp32 and the 16-bit types, the bits of its sums."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

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


def in_order(values: Tensor, rows: Tensor, fused: bool) -> Tensor:
    """[d] float32: values[e] * rows[e] added one after the other, each sum rounded once, or the product as well."""
    total = np.zeros(rows.shape[1], dtype=np.float32)
    for value, row in zip(values.float().numpy(), rows.float().numpy(), strict=True):
        product = np.longdouble(value) * np.longdouble(row) if fused else value * row
        total = (product + total).astype(np.float32)
    return torch.from_numpy(total)


def fuses() -> bool:
    """Whether the level in use multiplies and adds with one rounding: 1 * -(1 + 2^-11) + (1 + 2^-12)^2 = 2^-24."""
    values, rows = torch.tensor([1.0, 1 + 2**-12]), torch.tensor([[-1 - 2**-11], [1 + 2**-12]])
    return bool(cpu.decode(values, torch.arange(2).int(), torch.tensor([0, 2]), rows, None) != 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", LEVELS)
def test_decode_and_segment_outer_add_in_the_order_of_entries(level: str, dtype: torch.dtype) -> None:
    """To the bit, at widths with and without whole strips of columns, for any number of entries to look ahead over."""
    cpu.set_simd_level(level)
    fused = fuses()
    assert fused or level == "portable"
    counts = torch.tensor([0, 1, 3, 4, 7, 8, 9, 16, 21, 0, 40])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    nnz, latents = int(offsets[-1]), 30
    values = torch.randn(nnz).to(dtype)
    indices = torch.randint(latents, (nnz,), dtype=torch.int32)
    owners = torch.arange(len(counts)).repeat_interleave(counts)
    for width in (1, 5, 16, 31, 33, 64, 130, 160, 300):
        for turned in (False, True):
            W, a = torch.randn(latents, width).to(dtype), torch.randn(len(counts), width).to(dtype)
            W, a = (W.T.contiguous().T, a.T.contiguous().T) if turned else (W, a)
            got = cpu.decode(values, indices, offsets, W, None, torch.float32)
            for row, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
                want = in_order(values[begin:end], W[indices[begin:end].long()], fused)
                assert torch.equal(got[row], want), f"row {row}, width {width}"
            outer = cpu.segment_outer(values, indices, offsets, a, latents)
            for latent in range(latents):
                mine = (indices == latent).nonzero()[:, 0]
                want = in_order(values[mine], a[owners[mine]], fused).to(dtype)
                assert torch.equal(outer[latent], want), f"latent {latent}, width {width}"
