"""The Triton kernels of codes in the interpreter, against the reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekernels.backends import reference
from triton_cases import DTYPES, module, skip_unless_interpreting

skip_unless_interpreting()
from saekernels.backends.triton import decode, gather_dot, gather_matmul, segment_outer, segment_sum, topk  # noqa: E402


def codes(counts: list[int], F: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes with so many entries per row; latents repeat."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(counts)
    values = torch.randn(count, generator=generator).to(dtype)
    indices = torch.randint(0, F, (count,), generator=generator, dtype=torch.int32)
    return values, indices, torch.tensor([0, *counts]).cumsum(0)


def close(got: Tensor, want: Tensor) -> None:
    tolerance = 2e-6 if want.dtype == torch.float32 else 2e-3
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


COUNTS = ([3, 0, 17, 1, 8], [0, 0], [], [40])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("d", [1, 37, 64])
def test_decode_and_its_gradients(dtype: torch.dtype, counts: list[int], d: int) -> None:
    values, indices, offsets = codes(counts, 23, dtype)
    W, bias, a = (torch.randn(23, d).to(dtype), torch.randn(d).to(dtype), torch.randn(len(counts), d).to(dtype))
    close(decode(values, indices, offsets, W, bias), reference.decode(values, indices, offsets, W, bias))
    wide = decode(values, indices, offsets, W, bias, torch.float32)
    close(wide, reference.decode(values, indices, offsets, W, bias, torch.float32))
    columns = W.t().contiguous().t()
    close(decode(values, indices, offsets, columns, None), reference.decode(values, indices, offsets, W, None))
    close(gather_dot(a, W, indices, offsets), reference.gather_dot(a, W, indices, offsets))
    stack = torch.randn(len(counts), 19, d).to(dtype).transpose(0, 1)
    close(gather_matmul(stack, W, indices, offsets), reference.gather_matmul(stack, W, indices, offsets))
    close(
        segment_outer(values, indices, offsets, a, 23),
        reference.segment_outer(values, indices, offsets, a, 23),
    )
    close(segment_sum(values, indices, 23), reference.segment_sum(values, indices, 23))


@pytest.mark.parametrize("piece", [2, 5])
def test_latents_that_fire_often(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    for name in ("segments", "segment_outer"):
        monkeypatch.setattr(module(f"codes.{name}"), "PIECE", piece)
    values, indices, offsets = codes([6] * 7, 9, torch.float32)
    indices[::2] = 4
    a = torch.randn(7, 11)
    close(segment_outer(values, indices, offsets, a, 9), reference.segment_outer(values, indices, offsets, a, 9))


def test_sums_of_long_and_short_latents_do_not_hang_on_one_another() -> None:
    """20 latents are in three tiles; latent 9 has more entries than are summed beside the others, 17 three rounds."""
    latents = torch.tensor([9] * 300 + [17] * 40 + list(range(20)) * 3, dtype=torch.int32)
    latents = latents[torch.randperm(len(latents), generator=torch.Generator().manual_seed(1))]
    values, _, _ = codes([len(latents)], 20, torch.float32)
    got = segment_sum(values, latents, 20)
    close(got, reference.segment_sum(values, latents, 20))
    for latent in (0, 9, 17):
        alone = latents == latent
        assert torch.equal(segment_sum(values[alone], latents[alone], 20)[latent], got[latent])


def test_rows_of_as_many_and_of_fewer_entries() -> None:
    """Programs of a row take turns where it has more entries than others; whole groups of entries, and what is left."""
    for counts in ([8, 8], [16, 1, 0, 3], [1] * 5):
        values, indices, offsets = codes(counts, 30, torch.float32)
        W, a = torch.randn(30, 32), torch.randn(len(counts), 32)
        close(decode(values, indices, offsets, W, None), reference.decode(values, indices, offsets, W, None))
        dots = gather_dot(a, W, indices, offsets)
        close(dots, reference.gather_dot(a, W, indices, offsets))
        stack = torch.stack([a, -a, 3 * a])
        products = gather_matmul(stack, W.half(), indices, offsets)
        close(products, reference.gather_matmul(stack, W.half(), indices, offsets))
        for row, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
            own = gather_dot(a[row : row + 1], W, indices[begin:end], torch.tensor([0, end - begin]))
            assert torch.equal(own, dots[begin:end])
            own = gather_matmul(stack[:2, row : row + 1], W.half(), indices[begin:end], torch.tensor([0, end - begin]))
            assert torch.equal(own, products[begin:end, :2])


@pytest.mark.parametrize("k", [3, 40])
def test_candidates_that_fill_half_of_their_room_or_more(k: int) -> None:
    """Of a room of 64 keys, half is sorted where a row has no more and k is less than that."""
    counts = torch.tensor([40, 64, 99, 41] if k == 40 else [3, 32, 33, 99], dtype=torch.int32)
    keys = torch.randint(-(2**62), 2**62, (4, 64), generator=torch.Generator().manual_seed(k))
    found = module("keys").Candidates(keys, counts, 64)
    values, indices = module("select").select(found, k, torch.float32, relu=False)
    for row, count in enumerate(counts.clamp(max=64).tolist()):
        best = keys[row, :count].sort(descending=True).values[:k]
        want = module("select").unpack(best, torch.float32, False)
        assert torch.equal(indices[row], want[1])
        torch.testing.assert_close(values[row], want[0], rtol=0, atol=0, equal_nan=True)


@given(counts=st.lists(st.integers(0, 9), max_size=6), F=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_segments(counts: list[int], F: int, seed: int) -> None:
    _, indices, offsets = codes(counts, F, torch.float32, seed)
    grouped = module("codes.segments").segments(indices, F)
    assert grouped.order.tolist() == sorted(range(len(indices)), key=lambda e: (int(indices[e]), e))
    assert grouped.starts.tolist() == [int((indices < latent).sum()) for latent in range(F + 1)]
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    assert module("codes.segments").rows_in(grouped.order, offsets).tolist() == [rows[e] for e in grouped.order]


@pytest.mark.parametrize("dtype", DTYPES)
def test_topk(dtype: torch.dtype) -> None:
    scores = torch.randn(5, 200).round(decimals=1).to(dtype)
    scores[0, 3], scores[0, 9], scores[1, 4], scores[1, 2], scores[2] = torch.nan, torch.inf, -torch.inf, -0.0, 1.0
    for k in (1, 7, 200):
        got, want = topk(scores, k), reference.topk(scores, k)
        assert torch.equal(got[1], want[1])
        torch.testing.assert_close(got[0], want[0], rtol=0, atol=0, equal_nan=True)


def test_the_reader_of_l2_reads_what_it_says() -> None:
    """Every program its tiles, each beginning at another, once around."""
    from saekernels.bench.measure import l2

    source = torch.arange(5 * 16, dtype=torch.float32)
    sums = l2.read(source, programs=3, tiles=4, block=16)
    tiles = source.view(5, 16)
    for program in range(3):
        wanted = sum(tiles[(program + 3 * number) % 5] for number in range(4))
        assert torch.equal(sums[program], wanted)
