"""Which screen serves which rows, at every SIMD level and for awkward inputs, and that it does not show."""

from __future__ import annotations

import pytest
import torch

from native_helpers import (  # noqa: F401
    AWKWARD,
    LEVELS,
    SCREENS,
    any_screen_again,
    awkward,
    best_level_again,
    counted,
    data,
    needs_native,
    one_by_one,
)
from oracle import same_bits
from saekernels.backends import cpu

pytestmark = [needs_native, pytest.mark.usefixtures("any_screen_again")]


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
