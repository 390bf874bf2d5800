"""The loss of a bfloat16 head, which is computed from bfloat16 products where the machine has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from native_helpers import LEVELS, best_level_again, needs_native  # noqa: F401
from oracle import same_bits
from saekernels.backends import cpu

pytestmark = needs_native

Losses = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def draw(T: int, d: int, V: int, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h_p, h_q [T, d], W_U [V, d] and targets; logits of about `scale`."""
    h_p = torch.randn(T, d)
    h_q = h_p + 0.3 * torch.randn(T, d)
    W_U = torch.randn(V, d) * scale * d**-0.5
    return h_p.bfloat16(), h_q.bfloat16(), W_U.bfloat16(), torch.randint(0, V, (T,))


def loss(h_p: Tensor, h_q: Tensor, W: Tensor, targets: Tensor, bias: Tensor | None = None,
         softcap: float | None = None) -> Losses:  # fmt: skip
    return cpu.linear_ce_kl(h_p, h_q, W, targets, bias, softcap, -100)


def dense(h_p: Tensor, h_q: Tensor, W: Tensor, targets: Tensor, bias: Tensor | None = None,
          softcap: float | None = None) -> Losses:  # fmt: skip
    """In float64."""

    def log_probabilities(h: Tensor) -> Tensor:
        z = h.double() @ W.double().T
        z = z if bias is None else z + bias.double()
        return (z if softcap is None else softcap * torch.tanh(z / softcap)).log_softmax(-1)

    log_p, log_q = log_probabilities(h_p), log_probabilities(h_q)
    ce_p, ce_q = (-log.gather(1, targets[:, None])[:, 0] for log in (log_p, log_q))
    return ce_p, ce_q, (log_p.exp() * (log_p - log_q)).sum(-1), (log_p.argmax(-1) == log_q.argmax(-1)).double()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("T", "d", "V", "bias", "softcap"),
    [
        (1, 1, 1, False, None),
        (1, 576, 5000, True, None),
        (3, 31, 1025, False, 5.0),
        (33, 33, 127, True, 30.0),
        (50, 300, 1153, False, None),
        (70, 4000, 300, True, None),
        (2, 8, 70_001, False, None),
    ],
)
def test_as_float64_to_a_few_millionths(level: str, T: int, d: int, V: int, bias: bool, softcap: float | None) -> None:
    """A logit is one fp32 sum of d terms, so its error grows with the root of d."""
    cpu.set_simd_level(level)
    problem = draw(T, d, V)
    offsets = torch.randn(V) if bias else None
    got, want = loss(*problem, offsets, softcap), dense(*problem, offsets, softcap)
    for value, expected in zip(got[:3], want[:3], strict=True):
        assert float((value.double() - expected).abs().max()) < 2e-6 + 1e-7 * d**0.5
    assert torch.equal(got[3].double(), want[3])


@pytest.mark.parametrize("level", LEVELS)
def test_threads_and_batches_change_no_bit(level: str, threads: Callable[[int], None]) -> None:
    cpu.set_simd_level(level)
    h_p, h_q, W, targets = draw(75, 100, 3000)
    threads(1)
    alone = loss(h_p, h_q, W, targets)
    for count in (2, 3, 8):
        threads(count)
        assert same_bits(loss(h_p, h_q, W, targets), alone)
    for rows in (slice(0, 1), slice(3, 40), slice(40, 75)):
        part = loss(h_p[rows], h_q[rows], W, targets[rows])
        assert same_bits(part, tuple(value[rows] for value in alone))
    assert same_bits(loss(h_p, h_q, W.T.contiguous().T, targets), alone)


@pytest.mark.parametrize("level", LEVELS)
def test_many_blocks_of_tokens(level: str) -> None:
    """More tokens than statistics are kept of at a time, some of them ignored."""
    cpu.set_simd_level(level)
    h_p, h_q, W, targets = draw(3000, 2, 150_000)
    targets[::3] = -100
    got = loss(h_p, h_q, W, targets)
    some = torch.tensor([1, 2, 1499, 2000, 2999])
    want = dense(h_p[some], h_q[some], W, targets[some])
    assert float((torch.stack(got[:3])[:, some].double() - torch.stack(want[:3])).abs().max()) < 4e-6
    assert (torch.stack(got)[:, ::3] == 0).all()


@pytest.mark.parametrize("level", LEVELS)
def test_kl_of_one_stream_with_itself_is_nothing(level: str) -> None:
    cpu.set_simd_level(level)
    h_p, _, W, targets = draw(40, 64, 2000)
    assert (loss(h_p, h_p, W, targets)[2] == 0).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 40, 600, 1100])
def test_special_logits_do_what_log_softmax_does(level: str, special: float, position: int) -> None:
    cpu.set_simd_level(level)
    z = torch.randn(1200).bfloat16()
    z[position] = special
    h = torch.ones(1, 1).bfloat16()
    ce, _, kl, agree = loss(h, h, z[:, None].contiguous(), torch.tensor([3]))
    want = -torch.log_softmax(z.double(), 0)[3:4].float()
    torch.testing.assert_close(ce, want, equal_nan=True, rtol=1e-6, atol=1e-6)
    assert bool(kl.isnan()) == bool(want.isnan())
    assert bool(agree.isnan()) == math.isnan(special)


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_of_minus_infinity_is_nan(level: str) -> None:
    cpu.set_simd_level(level)
    h, W = torch.ones(1, 1).bfloat16(), torch.full((1200, 1), -math.inf).bfloat16()
    assert loss(h, h, W, torch.tensor([3]))[0].isnan().all()


@pytest.mark.parametrize("level", LEVELS)
def test_ranges_of_minus_infinity_count_for_nothing(level: str) -> None:
    """As masked vocabularies have them: whole tiles, whole ranges, and streams that differ where p is 0."""
    cpu.set_simd_level(level)
    h_p, h_q, W, targets = draw(20, 16, 4000)
    bias = torch.randn(4000)
    bias[:1500], bias[2500:2600], bias[3999] = -math.inf, -math.inf, -math.inf
    kept = bias > -math.inf
    targets = torch.randint(1500, 2500, (20,))
    got = loss(h_p, h_q, W, targets, bias)
    want = dense(h_p, h_q, W[kept], targets - 1500, bias[kept])
    for value, expected in zip(got[:3], want[:3], strict=True):
        assert float((value.double() - expected).abs().max()) < 4e-6
    assert torch.equal(got[3].double(), want[3])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("first", "second"), [(0, 1), (5, 130), (100, 1030), (1023, 1024), (2000, 2047)])
def test_agreement_breaks_ties_low(level: str, first: int, second: int) -> None:
    """p has two equal largest logits, q the lower or the higher of them alone."""
    cpu.set_simd_level(level)
    W = torch.zeros(2048, 2)
    W[first], W[second] = torch.tensor([5.0, 3.0]), torch.tensor([5.0, 4.0])
    h_p, low, high = (torch.tensor([row]).bfloat16() for row in ([1.0, 0.0], [1.0, -1.0], [1.0, 1.0]))
    target = torch.tensor([0])
    assert float(loss(h_p, low, W.bfloat16(), target)[3]) == 1.0
    assert float(loss(h_p, high, W.bfloat16(), target)[3]) == 0.0


@pytest.mark.parametrize("level", LEVELS)
def test_large_logits(level: str) -> None:
    cpu.set_simd_level(level)
    W = torch.tensor([[1e4], [-1e4], [0.0]]).bfloat16()
    h = torch.tensor([[3.0], [-3.0]]).bfloat16()
    got = loss(h, h.flip(0), W, torch.tensor([0, 1]))
    assert got[0].tolist() == [0.0, 0.0]
    torch.testing.assert_close(got[1].double(), dense(h, h.flip(0), W, torch.tensor([0, 1]))[1])
