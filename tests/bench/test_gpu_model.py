"""The cost model of the GPU scorecard, by hand and against the kernels' machine code."""

from __future__ import annotations

import importlib
import itertools
import json
import re

import pytest
import torch

from places import ROOT, TESTS
from saekernels.bench import Shape
from saekernels.bench.gpu import model
from saekernels.bench.gpu.cards import CARDS, Card

ROUND = Card("round", 100, 50, 10, 200, 1000, 2000, 1, 1, 1.0, 1e-6)


def test_a_kernel_takes_the_longest_of_its_parts() -> None:
    # 1e12 operations at 100e12, 1e9 bytes at 1e12, 4e9 at 2e12; 128e9 lane operations at 128e9; a launch.
    kernel = model.Kernel("k", 1e12, 100, 1e9, 4e9, 128e9)
    assert kernel.seconds(ROUND) == pytest.approx(0.01 + 1 + 1e-6)
    assert kernel._replace(flops=0).seconds(ROUND) == pytest.approx(0.002 + 1 + 1e-6)
    assert kernel._replace(flops=0, l2=0, lanes=0).seconds(ROUND) == pytest.approx(0.001 + 1e-6)


def test_the_unit_that_bounds_a_kernel() -> None:
    kernel = model.Kernel("k", 1e12, 100, 1e9, 4e9, 128e9)
    assert kernel._replace(issued=256e9).bound(ROUND) == "issue"  # 2 s beside the others' hundredths
    assert kernel._replace(issued=256e9).seconds(ROUND) == pytest.approx(2 + 1 + 1e-6)
    assert kernel.bound(ROUND) == "products"
    assert kernel._replace(flops=0.1e12).bound(ROUND) == "L2"  # 1 ms beside 1 of memory and 2
    assert kernel._replace(flops=0, l2=1e9).bound(ROUND) == "memory"


def test_what_tiles_read_by_hand() -> None:
    # 256 x 512 scores of depth 8 in tiles of 128 x 128: four columns of tiles read x, two rows of them W, in bf16.
    assert model.tile_reads(Shape(256, 8, 512), 2, (128, 128)) == (4 * 256 + 2 * 512) * 8 * 2
    assert model.tile_reads(Shape(256, 8, 512), 2, (128, 128)) == 256 * 512 * 8 * 2 * (1 / 128 + 1 / 128)
    # Ragged tiles: 3 of 128 for 300 rows, 2 of 64 for 65; one row of x reads all of W once.
    assert model.tile_reads(Shape(300, 10, 65), 4, (128, 64)) == (2 * 300 + 3 * 65) * 10 * 4
    assert model.tile_reads(Shape(1, 10, 640), 4, (128, 128)) == (5 * 1 + 640) * 10 * 4
    # Two streams share what is read of W.
    assert model.tile_reads(Shape(256, 8, 512), 2, (64, 128), streams=2) == (2 * 4 * 256 + 4 * 512) * 8 * 2


def test_operands_through_l2_by_hand() -> None:
    shape = Shape(8192, 4096, 131072, 64)
    kernels = {kernel.name: kernel for kernel in model.encode(shape, torch.bfloat16, CARDS["H200"])}
    assert kernels["screen"].l2 == 2**13 * 2**12 * 2**17 * 2 // 64 == 137_438_953_472
    assert kernels["sample"].l2 * 16 == kernels["screen"].l2
    # 137.4 GB at 5.7 TB/s are 24.11 ms; 4.22 instructions and 7 in a pack with a hit are on top.
    seconds = kernels["screen"]._replace(lanes=0).seconds(CARDS["H200"])
    assert seconds == pytest.approx(24.11e-3 + 2e-6, rel=1e-3)
    assert kernels["screen"].bound(CARDS["H200"]) == "L2"
    eight = {kernel.name: kernel for kernel in model.encode(shape, torch.bfloat16, CARDS["H200"], "screened")}
    assert eight["screen"].l2 * 2 == kernels["screen"].l2
    *_, dense, _ = model.encode(Shape(128, 64, 1024, 8), torch.float32, ROUND)
    assert dense.l2 == (8 * 128 + 1024) * 64 * 4
    (parts, merge) = model.loss(Shape(8192, 768, 51200), torch.bfloat16, ROUND)
    assert parts.l2 == 8192 * 768 * 51200 * 2 * 3 // 128
    assert merge.l2 == 0


def test_the_losss_gradient_by_hand() -> None:
    T, d, V = 8192, 768, 8192
    *forward, rows, slopes, accumulate = model.loss_train(Shape(T, d, V), torch.bfloat16, ROUND)
    assert forward == model.loss(Shape(T, d, V), torch.bfloat16, ROUND)
    assert slopes.flops == accumulate.flops == 4 * T * d * V
    assert slopes.launches == accumulate.launches == 2  # of 4,096 words each
    # dz of two streams is written and read once, d h in float32 read and written for each slab.
    assert slopes.memory == 2 * T * V * 2 + (2 * 2 * T * d + V * d) * 2
    assert accumulate.memory == 2 * T * V * 2 + V * d * 2 + 2 * 2 * 4 * 2 * T * d
    assert slopes.l2 == forward[0].l2 + 2 * T * V * 2
    assert accumulate.l2 == 2 * (2 * T * 4096 * (d // 128) + d * 4096 * (2 * T // 128)) * 2
    assert rows.flops == 0
    seconds = slopes._replace(flops=0, memory=0, l2=0, lanes=0).seconds(ROUND)
    assert seconds == pytest.approx(2 * ROUND.launch)


def test_tiles_are_those_of_the_table() -> None:
    pytest.importorskip("triton")
    from saekernels.backends.triton import configs

    for dtype, width in itertools.product((torch.float32, torch.bfloat16, torch.int8), (768, 4096)):
        assert configs.lookup("screen", 90, dtype, width)[:2] == model.SCREEN_TILE
    for dtype, width in itertools.product((torch.float32, torch.bfloat16), (768, 4096)):
        assert configs.lookup("linear_ce_kl", 90, dtype, width)[:2] == model.LOSS_TILE[dtype.itemsize]
        assert configs.lookup("linear_ce_kl_backward", 90, dtype, width)[:2] == model.GRADIENT_TILE[dtype.itemsize]
    loss = importlib.import_module("saekernels.backends.triton.loss.linear_ce_kl")
    backward = importlib.import_module("saekernels.backends.triton.loss.linear_ce_kl_backward")
    assert (loss.TILES, backward.SLAB) == (model.PART, model.SLAB)


def test_encode_by_hand() -> None:
    shape = Shape(8192, 4096, 131072, 64)
    kernels = {kernel.name: kernel for kernel in model.encode(shape, torch.bfloat16, CARDS["H200"])}
    assert list(kernels) == ["sample", "rank", "screen", "certify", "exact_rows", "select"]
    assert kernels["screen"].flops == 2 * 8192 * 4096 * 131072
    assert kernels["sample"].flops * 16 == kernels["screen"].flops
    assert kernels["sample"].memory == (8192 * 4096 + 131072 // 16 * 4096) * 2 + 4 * 8192 * 1024
    wide = {kernel.name: kernel for kernel in model.encode(shape, torch.float32, CARDS["H200"])}
    assert (wide["row_norms"].memory, wide["latent_norms"].memory) == (8192 * 4096 * 4, 131072 * 4096 * 4)
    assert wide["screen"].rate == CARDS["H200"].tf32
    # Of 2.1 GB of W an H200 holds 60 MiB in L2; the rest is read for each of 3.3 * 64 candidates.
    reads = 8192 * 3.3 * 64 * 4096 * 4
    assert wide["rescore"].l2 == pytest.approx(reads)
    assert wide["rescore"].memory == pytest.approx(reads * (1 - 60 * 2**20 / (131072 * 4096 * 4)))
    in_l2 = model.encode(shape, torch.float32, CARDS["H200"]._replace(l2_bytes=2**32))
    assert {kernel.name: kernel for kernel in in_l2}["rescore"].memory == 131072 * 4096 * 4
    assert "cut" in wide
    eight = {kernel.name: kernel for kernel in model.encode(shape, torch.bfloat16, CARDS["H200"], "screened")}
    assert eight["screen"].rate == CARDS["H200"].eight_bit
    assert (eight["quantise"].memory, eight["quantise W"].memory) == (5 * 8192 * 4096, 5 * 131072 * 4096)


def test_gathers_are_those_of_the_machine_code_in_the_model_and_on_its_page() -> None:
    """Triton 3.9 for sm_90; a row of the page has each figure before and after, 3.6 the same instructions."""
    table = json.loads((TESTS / "gpu" / "golden" / "triton_machine_code.json").read_text())
    golden = table["3.9"]["90"]
    for kernel, per_size in model.GATHERED.items():
        for size, form in ((2, "bf16"), (4, "fp32")):
            biased = " biased" if kernel == "decode" else ""
            assert golden[f"{kernel}_kernel {form}{biased} even"]["per_element"] == per_size[size]
    for size, form in ((2, "bf16"), (4, "fp32")):
        assert golden[f"segment_sum_kernel {form} block=128"]["per_latent"] == model.PER_LATENT[size]
    assert golden["rank_kernel block=1024"]["per_key"] == model.RANKED
    assert golden["select_kernel bf16 relu kept=64 block=1024"]["per_key"] == model.SELECTED
    page = (ROOT / "docs" / "explanation" / "gpu_model.md").read_text()
    row_of = r"^\| (\w+), (\w+) \| \d+, (\d+) \| \d+, (\d+) \| .+?, ([\d.]+) \| (.+?), (.+?) \|$"
    rows = re.findall(row_of, page, re.MULTILINE)
    assert len(rows) == 9
    for kernel, form, registers, blocks, per_element, before, loads in rows:
        name = f"{kernel}_kernel {form}{' biased' if kernel == 'decode' else ''} even"
        row = golden[name]
        assert (row["registers"], row["blocks"]) == (int(registers), int(blocks))
        assert row["per_element"] == float(per_element)
        assert row["loads"] == (before if loads == "the same" else loads)
        assert table["3.6"]["90"][name]["per_element"] == row["per_element"]


def test_a_failed_row_reads_all_of_w() -> None:
    shape, H200 = Shape(8192, 4096, 131072, 64), CARDS["H200"]
    none, one = (model.exact_rows(shape, torch.bfloat16, H200, failed) for failed in (0, 1))
    assert none.seconds(H200) == pytest.approx(H200.launch, rel=1e-6)
    assert one.memory == 4 + 131072 * 4096 * 2
    assert one.seconds(H200) == pytest.approx(0.2497e-3 + H200.launch, rel=1e-3)


def test_epilogues_are_those_of_the_machine_code() -> None:
    """Triton 3.9 for sm_90; the forms are named by their operands."""
    golden = json.loads((TESTS / "gpu" / "golden" / "triton_machine_code.json").read_text())["3.9"]["90"]
    forms = {
        "exact": "bf16 biased even product=ieee",
        "tf32": "fp32 biased reach even product=tf32",
        "screened": "fp8e4nv biased scaled reach even product=ieee",
    }
    for form, name in forms.items():
        assert golden[f"sample_kernel {name}"]["per_score"] == model.SAMPLE_EPILOGUE[form]
        assert golden[f"screen_kernel {name}"]["per_score"] == model.SCREEN_EPILOGUE[form]
        assert golden[f"screen_kernel {name}"]["per_hit"] == model.APPEND
    for size, name in ((2, "bf16 even product=ieee"), (4, "fp32 even product=tf32x3")):
        assert golden[f"parts_kernel {name}"]["per_logit"] == model.LOSS_EPILOGUE[size]
        assert golden[f"slopes_kernel {name}"]["per_logit"] == model.SLOPE_EPILOGUE[size]


def test_appending_by_hand() -> None:
    # No pack, all packs, and of packs of 256 scores 1 - (1 - 1 / 256)^256.
    assert model.appending(0) == 0
    assert model.appending(1) == pytest.approx(7)
    assert model.appending(1 / 256) == pytest.approx(7 * 0.632840, rel=1e-5)


def test_decode_by_hand() -> None:
    (kernel,) = model.decode(Shape(100, 64, 10, 1), torch.float32, ROUND)
    used = 10 * (1 - 0.9**100)
    assert kernel.memory == pytest.approx((used * 64 + 6400) * 4 + 800)
    assert kernel.l2 == 100 * 64 * 4


def test_small_or_greedy_encoders_are_not_screened() -> None:
    for shape in (Shape(64, 64, 1000, 8), Shape(64, 64, 8192, 4000)):
        assert [kernel.name for kernel in model.encode(shape, torch.bfloat16, ROUND)] == ["dense", "topk"]


def test_prepared_weights_by_hand() -> None:
    """W is read for nothing but the product; what is looked at of it is little."""
    _, d, F, _ = shape = Shape(64, 4096, 131072, 64)
    for dtype, precision, centred, gone, memory in (
        (torch.bfloat16, "exact", True, "fold", F * d * 2 + 4 * F),
        (torch.float32, "exact", False, "latent_norms", F * d * 4),
        (torch.bfloat16, "screened", False, "quantise W", F * d * 5),
    ):
        plain, made = (
            {one.name: one for one in model.encode(shape, dtype, ROUND, precision, centred=centred, prepared=prepared)}
            for prepared in (False, True)
        )
        assert plain[gone].memory == memory
        assert made[gone].memory <= 12 * F
        assert made.pop("look").memory == 4096 * 32 + (dtype.itemsize + 4) * d
        assert {name: made[name] for name in made if name != gone} == {
            name: plain[name] for name in plain if name != gone
        }
    bare = model.encode(shape, torch.bfloat16, ROUND)
    assert model.encode(shape, torch.bfloat16, ROUND, prepared=True) == bare
    assert model.predict("sae_topk", shape, torch.bfloat16, ROUND)[0].name == "fold"
