"""What the cost model expects of the warp-specialised screen on Hopper."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

pytest.importorskip("triton")

from places import ROOT, TESTS
from saekernels.backends.triton.configs import COOPERATIVE, PINGPONG
from saekernels.bench import Shape
from saekernels.bench.gpu import hopper_model, model
from saekernels.bench.gpu.cards import CARDS, Card

SHAPE = Shape(256, 64, 8192, 1)


def screen_of(card: Card) -> model.Kernel:
    return next(kernel for kernel in model.encode(SHAPE, torch.bfloat16, card) if kernel.name == "screen")


def test_epilogues_are_those_of_the_machine_code() -> None:
    golden = json.loads((TESTS / "gpu" / "golden" / "triton_machine_code.json").read_text())["3.9"]["90"]
    for parts in (1, 2):
        row = golden[f"screen_hopper_kernel bf16 biased even tma product=ieee parts={parts}"]
        assert (row["per_score"], row["per_hit"]) == (hopper_model.EPILOGUE[parts], hopper_model.APPEND[parts])


def test_a_hidden_epilogue_by_hand() -> None:
    # 128e9 lanes a second; a launch of 1 us. One candidate in 512 scores, which are in 40 % of packs.
    card = Card("round", 100, 50, 10, 200, 1000, 2000, 1, 1, 1.0, 1e-6)
    portable = screen_of(card)._replace(memory=2 * (256 * 64 + 8192 * 64) + 8 * 256 * 16)
    share = 1 - (1 - 1 / 512) ** 256
    for ring, score, hit in ((PINGPONG, 4.05, 53), (COOPERATIVE, 4.47, 59)):
        lanes = (score + hit / 8 * share) * 256 * 8192 / 128e9
        product = 2 * 256 * 64 * 8192 / 100e12
        reads = (8192 // ring.BN * 256 + 2 * 8192) * 64 * 2 / 2e12
        found = hopper_model.screen_seconds(portable, SHAPE, card, ring)
        assert lanes > max(product, reads)
        together = lanes if ring is PINGPONG else max(product, reads) + lanes
        assert found == pytest.approx(together + 1e-6)
        slow = card._replace(bf16=0.01)
        found = hopper_model.screen_seconds(portable._replace(rate=0.01), SHAPE, slow, ring)
        product = 2 * 256 * 64 * 8192 / 0.01e12
        assert found == pytest.approx((product if ring is PINGPONG else product + lanes) + 1e-6)


def test_the_page_has_the_predictions_of_the_model() -> None:
    """Portable, ping-pong and cooperative, with the H200's L2 and were that no bound, and the product alone."""
    page = (ROOT / "docs" / "explanation" / "gpu_model.md").read_text()
    rows = re.findall(r"^\| encode \((\d+), (\d+), (\d+)\) \|((?: [\d.]+ \|){7})$", page, re.MULTILINE)
    assert len(rows) == 4
    card = CARDS["H200"]
    for d, F, k, said in rows:
        shape = Shape(8192, int(d), int(F), int(k))
        expected = [
            hopper_model.encode_seconds(shape, one, ring)
            for one in (card, card._replace(l2=math.inf))
            for ring in (None, PINGPONG, COOPERATIVE)
        ]
        expected.append(model.product(shape, torch.bfloat16, card).seconds(card))
        assert said.replace("|", "").split() == [f"{1e3 * seconds:.2f}" for seconds in expected]
