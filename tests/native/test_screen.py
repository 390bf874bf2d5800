"""The native screen: what it drops, what it certifies, and that each fallback is reached and changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from native_helpers import SCREENS, any_screen_again, counted, data, needs_native, one_by_one  # noqa: F401
from oracle import check_top_k, same_bits
from saekernels.backends import cpu

pytestmark = [needs_native, pytest.mark.usefixtures("any_screen_again")]


@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_leaves_few_scores_to_compute(screen: str) -> None:
    x, W, b = data(T=200, d=256, F=8192)
    cpu.set_screening(screen)
    counts = counted(lambda: cpu.encode_topk(x, W, b, None, 32, "none"))
    assert counts["screened_rows"] == 200
    assert counts["overflow_rows"] == counts["unbounded_rows"] == 0
    assert 32 <= counts["rescored"] / 200 < {"fp32": 33, "bf16": 60, "int16": 36, "int8": 150}[screen]


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_way_a_row_went_does_not_show(screen: str, dtype: torch.dtype) -> None:
    x, W, b = (part.to(dtype) for part in data())
    cpu.set_screening(screen)
    assert same_bits(cpu.encode_topk(x, W, b, None, 32, "none"), one_by_one(x, W, b, 32))
    whole = cpu.encode_threshold(x, W, b, None, torch.tensor(1.5))
    rows = [cpu.encode_threshold(x[t : t + 1], W, b, None, torch.tensor(1.5)) for t in range(x.shape[0])]
    assert same_bits(whole[:2], tuple(torch.cat([row[i] for row in rows]) for i in range(2)))


@pytest.mark.parametrize("screen", SCREENS)
def test_rows_with_more_ties_than_room_overflow(screen: str) -> None:
    x, W, _ = data(T=12)
    x[3:5] = 0
    cpu.set_screening(screen)
    counts = counted(lambda: cpu.encode_topk(x, W, None, None, 8, "none"))
    assert (counts["overflow_rows"], counts["screened_rows"]) == (2, 10)
    values, indices = cpu.encode_topk(x, W, None, None, 8, "none")
    assert torch.equal(indices[3:5], torch.arange(8, dtype=torch.int32).expand(2, 8))
    assert not values[3:5].any()
    check_top_k(values, indices, x, W, None, None, "none")


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_rows_without_a_bound_are_scored_whole(screen: str, value: float) -> None:
    x, W, b = data(T=9)
    x[2, 5] = value
    cpu.set_screening(screen)
    counts = counted(lambda: cpu.encode_topk(x, W, b, None, 8, "none"))
    assert (counts["unbounded_rows"], counts["screened_rows"]) == (1, 8)
    assert same_bits(cpu.encode_topk(x, W, b, None, 8, "none"), one_by_one(x, W, b, 8))


@pytest.mark.parametrize("screen", SCREENS)
def test_latents_without_a_bound_are_always_candidates(screen: str) -> None:
    x, W, b = data(T=20)
    W[17, 3], W[2000, 0], b[5], b[99] = float("nan"), float("inf"), float("inf"), -float("inf")
    cpu.set_screening(screen)
    counts = counted(lambda: cpu.encode_topk(x, W, b, None, 16, "none"))
    assert counts["screened_rows"] == 20
    values, indices = cpu.encode_topk(x, W, b, None, 16, "none")
    assert same_bits((values, indices), one_by_one(x, W, b, 16))
    assert (indices[:, 0] == 17).all()
    assert values[:, 0].isnan().all()


@pytest.mark.parametrize("screen", SCREENS)
def test_differences_below_the_screens_precision_decide(screen: str) -> None:
    """200 latents that bf16 cannot tell apart, among others that are far below; their order is in the last bits."""
    T, d, F = 16, 64, 2000
    x, W = torch.ones(T, d), torch.randn(F, d) * 1e-3
    chosen = torch.randperm(F)[:200]
    W[chosen] = 1.0
    W[chosen, 0] += torch.arange(200) * 2.0**-16
    cpu.set_screening(screen)
    _, indices = cpu.encode_topk(x, W, None, None, 50, "none")
    assert torch.equal(indices.long(), chosen.flip(0)[:50].expand(T, 50))
    assert counted(lambda: cpu.encode_topk(x, W, None, None, 50, "none"))["overflow_rows"] == 0


def almost_alike(alike: int, step: float, F: int = 20_000) -> tuple[Tensor, Tensor, Tensor]:
    """(x, W, the best latents in order): so many latents that differ by multiples of `step`, others far below."""
    x, W = torch.ones(16, 64), torch.randn(F, 64) * 1e-3
    chosen = torch.randperm(F)[:alike]
    W[chosen] = torch.tensor([1.001, 0.999]).repeat(32)  # bf16 rounds them, and the sum is that of ones
    W[chosen, 0] += torch.arange(alike) * step
    return x, W, chosen.flip(0)


def test_rows_too_crowded_for_bf16_meet_the_fp32_screen_together() -> None:
    x, W, best = almost_alike(6000, 2.0**-16)
    cpu.set_screening("bf16")
    counts = counted(lambda: cpu.encode_topk(x, W, None, None, 50, "none"))
    assert (counts["rescreened_rows"], counts["screened_rows"], counts["overflow_rows"]) == (16, 16, 0)
    assert counts["rescored"] < 16 * 300
    _, indices = cpu.encode_topk(x, W, None, None, 50, "none")
    assert torch.equal(indices.long(), best[:50].expand(16, 50))


@pytest.mark.parametrize("prepared", [False, True])
def test_lists_grow_as_far_as_the_screen_needs(prepared: bool) -> None:
    x, W, best = almost_alike(1500, 2.0**-16)
    cpu.set_screening("bf16")
    block = cpu.prepare(W) if prepared else None
    counts = counted(lambda: cpu.encode_topk(x, W, None, None, 50, "none", block))
    assert (counts["rescreened_rows"], counts["screened_rows"], counts["overflow_rows"]) == (0, 16, 0)
    assert counts["rescored"] > 16 * 1000
    _, indices = cpu.encode_topk(x, W, None, None, 50, "none", block)
    assert torch.equal(indices.long(), best[:50].expand(16, 50))


@pytest.mark.parametrize(("d", "k", "most"), [(4096, 64, 2.7), (8192, 32, 5)])
def test_wide_rows_are_certified_by_the_bf16_screen(d: int, k: int, most: float) -> None:
    x, W, b = data(T=12, d=d, F=6000)
    cpu.set_screening("bf16")
    counts = counted(lambda: cpu.encode_topk(x, W, b, None, k, "none"))
    assert (counts["screened_rows"], counts["rescreened_rows"], counts["overflow_rows"]) == (12, 0, 0)
    assert counts["rescored"] < 12 * most * k
    assert same_bits(cpu.encode_topk(x, W, b, None, k, "none"), one_by_one(x, W, b, k))


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1.0, 1e15])
@pytest.mark.parametrize("tails", ["gaussian", "heavy", "one direction"])
def test_nothing_is_lost(screen: str, scale: float, tails: str) -> None:
    x, W, _ = data(T=64, d=200, F=4000)
    if tails == "heavy":
        x, W = x**5, W**5
    if tails == "one direction":
        x = x * torch.logspace(0, -6, 200)
        W[:, 0] += 3
    x, W = x * scale, W * scale
    cpu.set_screening(screen)
    got = cpu.encode_topk(x, W, None, None, 20, "none")
    assert same_bits(got, one_by_one(x, W, None, 20))
    check_top_k(*got, x, W, None, None, "none")


def test_an_unknown_screen_is_refused() -> None:
    with pytest.raises(ValueError, match="screening 'int4' is unknown; need auto, fp32, bf16, int16 or int8"):
        cpu.set_screening("int4")
