"""BatchTopK's codes against the dense matrix: the n largest of a batch, whatever the guess, ties, and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saekernels.training import encode_batch_topk

T, D, F = 37, 24, 300


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def encoder() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, W_enc, b_enc and pre_bias, each with a gradient."""
    made = (torch.randn(T, D), torch.randn(F, D), torch.randn(F) * 0.5, torch.randn(D) * 0.3)
    return tuple(one.requires_grad_() for one in made)  # type: ignore[return-value]


def dense_codes(x: Tensor, W_enc: Tensor, b_enc: Tensor, pre_bias: Tensor, n: int) -> Tensor:
    """[T, F] by torch alone, from the flat topk of the whole batch."""
    pre = ((x - pre_bias) @ W_enc.T + b_enc).relu()
    kept = pre.flatten().topk(n)
    return torch.zeros(pre.numel()).scatter(0, kept.indices, kept.values).view_as(pre)


def to_dense(values: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    rows = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    return torch.zeros(len(offsets) - 1, F).index_put((rows, indices.long()), values)


@pytest.mark.parametrize("guess", [None, -3.0, 0.0, 1e-4, 2.0, 1e9], ids=str)
@pytest.mark.parametrize("n", [1, 40, 37 * 16])
def test_codes_and_gradients_are_those_of_the_dense_matrix(n: int, guess: float | None) -> None:
    ours, theirs = encoder(), encoder()
    for one, other in zip(ours, theirs, strict=True):
        other.data.copy_(one.data)
    x, W_enc, b_enc, pre_bias = ours
    codes = encode_batch_topk(x, W_enc, b_enc, n=n, pre_bias=pre_bias, guess=guess)
    want = dense_codes(*theirs, n)
    assert codes.values.numel() == n
    assert codes.indices.dtype == torch.int32
    torch.testing.assert_close(to_dense(*codes), want, rtol=1e-5, atol=1e-5)
    weights = torch.randn(T, F)
    (to_dense(*codes) * weights).sum().backward()
    (want * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_rows_have_as_many_codes_as_they_deserve() -> None:
    """Scores 3 j, 2 j and j for j = 1 .. 300: above 600 are 100, 0 and 0 of them, above 300 are 200, 150 and 0."""
    x = torch.tensor([[3.0], [2.0], [1.0]])
    W_enc = torch.arange(1.0, F + 1)[:, None]
    assert encode_batch_topk(x, W_enc, n=100).offsets.diff().tolist() == [100, 0, 0]
    assert encode_batch_topk(x, W_enc, n=350).offsets.diff().tolist() == [200, 150, 0]


def test_ties_go_to_the_first_rows_and_latents() -> None:
    x = torch.ones(4, D)
    codes = encode_batch_topk(x, torch.ones(F, D), n=F + 7)
    assert codes.offsets.tolist() == [0, F, F + 7, F + 7, F + 7]
    assert codes.indices.tolist() == [*range(F), *range(7)]


def test_fewer_positive_ones_than_asked_for_all_come_back() -> None:
    x, W_enc, b_enc, _ = (one.detach() for one in encoder())
    dense = (x @ W_enc.T + b_enc - 15).relu()
    positive = int((dense > 0).sum())
    assert 0 < positive < 500
    codes = encode_batch_topk(x, W_enc, b_enc - 15, n=500)
    assert codes.values.numel() == positive
    torch.testing.assert_close(to_dense(*codes), dense, rtol=1e-4, atol=1e-4)
    assert encode_batch_topk(x, W_enc, b_enc - 1e4, n=5).values.numel() == 0
    assert encode_batch_topk(x[:0], W_enc, b_enc, n=5).offsets.tolist() == [0]


@pytest.mark.parametrize("guess", [None, 1e-4, 2.0, 1e9], ids=str)
@pytest.mark.parametrize("n", [1, 40, 37 * 16])
def test_a_scale_chooses_and_is_not_in_the_values(n: int, guess: float | None) -> None:
    """Scales from 1e-3 to 30, and a latent of scale 0, which never comes."""
    ours, theirs = encoder(), encoder()
    for one, other in zip(ours, theirs, strict=True):
        other.data.copy_(one.data)
    scale = torch.logspace(-3, 1.5, F)[torch.randperm(F)].index_fill(0, torch.tensor([7]), 0.0).requires_grad_()
    x, W_enc, b_enc, pre_bias = ours
    codes = encode_batch_topk(x, W_enc, b_enc, n=n, pre_bias=pre_bias, scale=scale, guess=guess)
    pre = (theirs[0] - theirs[3]) @ theirs[1].T + theirs[2]
    kept = (pre * scale.detach()).relu().flatten().topk(n).indices
    want = torch.zeros(T * F).scatter(0, kept, pre.flatten()[kept]).view(T, F)
    assert codes.values.numel() == n
    assert 7 not in codes.indices
    torch.testing.assert_close(to_dense(*codes), want, rtol=1e-5, atol=1e-5)
    weights = torch.randn(T, F)
    (to_dense(*codes) * weights).sum().backward()
    (want * weights).sum().backward()
    assert scale.grad is None
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_a_scale_where_too_few_are_positive() -> None:
    x, W_enc, b_enc, _ = (one.detach() for one in encoder())
    scale = torch.rand(F).index_fill(0, torch.arange(0, F, 2), 0.0)
    dense = (x @ W_enc.T + b_enc - 15).relu() * (scale > 0)
    codes = encode_batch_topk(x, W_enc, b_enc - 15, n=500, scale=scale)
    assert 0 < codes.values.numel() == int((dense > 0).sum())
    torch.testing.assert_close(to_dense(*codes), dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [None, torch.ones(F)], ids=["plain", "scaled"])
def test_nan_is_not_lost(scale: Tensor | None) -> None:
    """As torch's topk ranks it: above everything. A loss of it is NaN, which a trainer must see."""
    x, W_enc, b_enc, _ = (one.detach() for one in encoder())
    b_enc[5] = float("nan")
    codes = encode_batch_topk(x, W_enc, b_enc, n=50, scale=scale)
    assert int(codes.values.isnan().sum()) == T
    assert codes.values.numel() == 50
    few = encode_batch_topk(x, W_enc, b_enc, n=20, scale=scale)
    assert bool(few.values.isnan().all())
    assert few.offsets.tolist() == [*range(21), *[20] * (T - 20)]


def test_half_precision_with_a_scale() -> None:
    """What comes back is the n largest of the values as they were rounded; ties are many."""
    x, W_enc, b_enc, _ = (one.detach().bfloat16() for one in encoder())
    scale = torch.rand(F) + 0.1
    codes = encode_batch_topk(x, W_enc, b_enc, n=200, scale=scale)
    scores = (codes.values.float() * scale[codes.indices.long()]).sort(descending=True).values
    every = encode_batch_topk(x, W_enc, b_enc, n=T * F)
    want = (every.values.float() * scale[every.indices.long()]).topk(200).values
    assert torch.equal(scores, want)


def test_what_is_rounded_above_the_others_in_half_precision_comes() -> None:
    """1.005 is 1.0078 in bfloat16, above 2 * 0.5035; the first guess lies between the two."""
    x, W_enc = torch.ones(1, 2).bfloat16(), torch.tensor([[1.0, 0.005], [2.0, 0.0]]).bfloat16()
    codes = encode_batch_topk(x, W_enc, n=1, scale=torch.tensor([1.0, 0.5035]), guess=1.006 / 0.95)
    assert codes.indices.tolist() == [0]
    assert codes.values.tolist() == [1.0078125]


def test_no_matrix_of_tokens_times_latents_is_made() -> None:
    x, W_enc = torch.randn(512, 16), torch.randn(4096, 16)
    encode_batch_topk(x, W_enc, n=512)
    with torch.profiler.profile(profile_memory=True) as profile:
        encode_batch_topk(x, W_enc, n=512)
    largest = max(abs(event.self_cpu_memory_usage) for event in profile.key_averages())
    assert largest < 512 * 4096 * 4 / 4


def test_wrong_uses_are_named() -> None:
    x, W_enc = torch.randn(4, D), torch.randn(F, D)
    with pytest.raises(ValueError, match=r"^n: got 0, need an int of at least 1$"):
        encode_batch_topk(x, W_enc, n=0)
    with pytest.raises(ValueError, match=r"^x: got shape \[1, 4, 24\], need \[T, d\]$"):
        encode_batch_topk(x[None], W_enc, n=1)
    with pytest.raises(ValueError, match=r"^guess: got nan, need a finite number or None$"):
        encode_batch_topk(x, W_enc, n=1, guess=float("nan"))
    with pytest.raises(ValueError, match=r"^scale: must not be below 0, but scale\[7\] = -0.5$"):
        encode_batch_topk(x, W_enc, n=1, scale=torch.ones(F).index_fill(0, torch.tensor([7]), -0.5))
    with pytest.raises(ValueError, match=r"^scale: got shape \[3\], need \[F\] = \[300\]$"):
        encode_batch_topk(x, W_enc, n=1, scale=torch.ones(3))
