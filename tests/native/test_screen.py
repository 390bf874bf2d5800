"""The native screen: what it drops, what it certifies, and that each fallback is reached and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from native_helpers import LEVELS, best_level_again, needs_native  # noqa: F401
from oracle import check_top_k, same_bits
from saekernels.backends import cpu

pytestmark = [needs_native, pytest.mark.usefixtures("any_screen_again")]
SCREENS = ("fp32", "bf16", "int16", "int8")


@pytest.fixture
def any_screen_again():  # type: ignore[no-untyped-def]
    yield
    cpu.set_screening("auto")


def counted(call: Callable[[], object]) -> dict[str, int]:
    """What `call` added to each counter."""
    before = cpu.stats()
    call()
    return {name: value - before[name] for name, value in cpu.stats().items()}


def data(T: int = 40, d: int = 96, F: int = 3000) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(T, d), torch.randn(F, d) / d**0.5, torch.randn(F) * 0.1


def one_by_one(x: Tensor, W: Tensor, b: Tensor | None, k: int, activation: str = "none") -> tuple[Tensor, Tensor]:
    """Single rows are never screened: every score is computed exactly."""
    rows = [cpu.encode_topk(x[t : t + 1], W, b, None, k, activation) for t in range(x.shape[0])]
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


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


def awkward(draw: str, T: int, d: int, F: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x, W, b) with what makes screens fail: one cause by name."""
    x, W, b = data(T, d, F)
    if draw == "anisotropic":
        x = x / torch.arange(1, d + 1) + 3 * (torch.arange(d) == 5)
    if draw == "outlier dimension":
        x[:, 7] *= 60
    if draw == "heavy-tailed latents":
        W = torch.distributions.StudentT(3.0).sample((F, d)) / d**0.5
    if draw == "attention sinks":
        x[::5] *= 170
    if draw == "latents by falling norm":
        W = W * torch.linspace(0, -4, F).exp()[:, None]
    if draw == "ties":
        W[F // 2 :] = W[: F - F // 2]
        x = x.round()
    if draw == "zeros":
        x[::3], W[::7], b = 0, 0, torch.zeros(F)
    if draw == "not finite":
        x[1, 3], x[4, 0], x[6, 6] = float("nan"), float("inf"), 2e38
        W[5, 5], W[9, 0] = float("nan"), -float("inf")
    if draw == "subnormal":
        x[::2] *= 1e-40
        W[::3] *= 1e-39
    return x, W, b


AWKWARD = (
    "gaussian", "anisotropic", "outlier dimension", "heavy-tailed latents", "attention sinks",
    "latents by falling norm", "ties", "zeros", "not finite", "subnormal",
)  # fmt: skip


@pytest.mark.parametrize("draw", AWKWARD)
@pytest.mark.parametrize("level", LEVELS)
def test_the_screen_does_not_show_at_any_level(level: str, draw: str) -> None:
    x, W, b = awkward(draw, T=37, d=200, F=3000)
    cpu.set_simd_level(level)
    ways = ((1, "relu"), (32, "none"), (256, "abs"))
    limits = (torch.tensor(2.0), torch.linspace(0.5, 4, 3000))
    want = {k: one_by_one(x, W, b, k, activation) for k, activation in ways}
    rows = [[cpu.encode_threshold(x[t : t + 1], W, b, None, limit) for t in range(37)] for limit in limits]
    for screen in SCREENS:
        cpu.set_screening(screen)
        for prepared in (None, cpu.prepare(W)):
            for k, activation in ways:
                assert same_bits(cpu.encode_topk(x, W, b, None, k, activation, prepared), want[k]), (screen, k)
            for limit, wanted in zip(limits, rows, strict=True):
                codes = cpu.encode_threshold(x, W, b, None, limit, prepared)
                assert same_bits(codes[:2], tuple(torch.cat([row[i] for row in wanted]) for i in range(2))), screen


@pytest.mark.parametrize("draw", AWKWARD)
def test_rows_are_counted_by_the_screen_that_served_them(draw: str) -> None:
    x, W, b = awkward(draw, T=37, d=200, F=3000)
    for screen in SCREENS:
        cpu.set_screening(screen)
        counts = counted(lambda: cpu.encode_topk(x, W, b, None, 32, "none"))
        served = {name: counts[f"{name}_rows"] for name in SCREENS}
        assert sum(served.values()) == counts["screened_rows"]
        assert {name for name, rows in served.items() if rows} <= {screen, "fp32"}
        assert served[screen] + counts["fallback_rows"] == 37
        assert counts["screened_rows"] + counts["overflow_rows"] + counts["unbounded_rows"] == 37


def test_a_floor_guessed_too_high_is_noticed() -> None:
    """Latents in the order of their scores: the best of the first tile are no sample of all."""
    x = torch.randn(2048) + 0.01 * torch.randn(9, 2048)
    W = torch.randn(8192, 2048) / 2048**0.5
    W = W[(W @ x.mean(0)).argsort(descending=True)].contiguous()
    cpu.set_screening("int8")
    counts = counted(lambda: cpu.encode_topk(x, W, None, None, 64, "none"))
    assert (counts["rescreened_rows"], counts["fallback_rows"], counts["overflow_rows"]) == (9, 9, 0)
    assert (counts["int8_rows"], counts["fp32_rows"]) == (0, 9)
    assert same_bits(cpu.encode_topk(x, W, None, None, 64, "none"), one_by_one(x, W, None, 64))


def test_latents_by_falling_norm_are_no_reason_to_guess_wrongly() -> None:
    """Tiles are taken in an order that follows nothing, so what is seen first is a sample of all."""
    x, W, b = awkward("latents by falling norm", T=64, d=256, F=24576)
    cpu.set_screening("int8")
    assert counted(lambda: cpu.encode_topk(x, W, b, None, 32, "none"))["fallback_rows"] <= 2


INT8_LEVELS = [level for level in LEVELS if level in ("avx512_vnni", "avx512_bf16")]


@pytest.mark.skipif(not INT8_LEVELS, reason="needs AVX512-VNNI")
@pytest.mark.parametrize("draw", ["gaussian", "attention sinks", "outlier dimension", "heavy-tailed latents"])
def test_int8_serves_the_blocks_of_rows_that_it_is_faster_for(draw: str) -> None:
    x, W, b = awkward(draw, T=150, d=1024, F=16384)
    cpu.set_simd_level(INT8_LEVELS[0])
    assert cpu.screening() == "int8+int16"
    counts = counted(lambda: cpu.encode_topk(x, W, b, None, 32, "none"))
    served = "int8_rows" if draw in ("gaussian", "attention sinks") else "int16_rows"
    assert (counts[served], counts["rescreened_rows"], counts["fallback_rows"]) == (150, 0, 0)
    assert same_bits(cpu.encode_topk(x, W, b, None, 32, "none"), one_by_one(x, W, b, 32))


@pytest.mark.skipif(not INT8_LEVELS, reason="needs AVX512-VNNI")
@pytest.mark.parametrize(
    ("T", "d", "F", "k", "prepared", "served"),
    [
        (150, 768, 8192, 8, False, "int8_rows"),
        (150, 768, 8192, 512, False, "int16_rows"),  # the window holds more than a 64th of the latents
        (150, 2560, 8192, 4, False, "int16_rows"),
        (16, 2560, 16384, 4, True, "int8_rows"),  # reading half as much is worth more
        (50, 768, 8192, 8, False, "fp32_rows"),  # too few to round all latents for
        (50, 768, 8192, 8, True, "int8_rows"),
        (1, 768, 8192, 8, False, "direct_rows"),
        (1, 768, 8192, 8, True, "int8_rows"),
    ],
)
def test_the_screen_goes_by_shape(T: int, d: int, F: int, k: int, prepared: bool, served: str) -> None:
    x, W, b = data(T, d, F)
    cpu.set_simd_level(INT8_LEVELS[0])
    block = cpu.prepare(W) if prepared else None
    assert counted(lambda: cpu.encode_topk(x, W, b, None, k, "none", block))[served] == T


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 17])
def test_few_rows_by_packed_latents(T: int, level: str, screen: str) -> None:
    cpu.set_simd_level(level)
    cpu.set_screening(screen)
    for d in (40, 130, 1100):
        x, W, b = data(T, d, 700)
        block = cpu.prepare(W)
        counts = counted(lambda x=x, W=W, b=b, block=block: cpu.encode_topk(x, W, b, None, 16, "abs", block))
        way = "direct_rows" if screen == "fp32" and T <= 4 else f"{screen}_rows"
        assert counts[way] + counts["fallback_rows"] == T
        assert same_bits(cpu.encode_topk(x, W, b, None, 16, "abs", block), one_by_one(x, W, b, 16, "abs"))
        codes, plain = (cpu.encode_threshold(x, W, b, None, torch.tensor(0.7), given) for given in (block, None))
        assert same_bits(codes[:2], plain[:2])


def test_an_unknown_screen_is_refused() -> None:
    with pytest.raises(ValueError, match="screening 'int4' is unknown; need auto, fp32, bf16, int16 or int8"):
        cpu.set_screening("int4")
