"""Every Triton kernel, compiled ahead of time for GPUs that are not here: no spills, room in shared memory, the right
instructions, and what a golden table says of its machine code: registers, blocks, instructions per score.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from places import GPU_SCRIPTS, TESTS

pytest.importorskip("triton")

GOLDEN = TESTS / "gpu" / "golden" / "triton_machine_code.json"
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
PRODUCT = {80: "mma", 90: "wgmma", 100: "tcgen05"}
WITH_PRODUCTS = (
    "screen_kernel", "screen_hopper_kernel", "sample_kernel", "dense_kernel", "parts_kernel", "slopes_kernel",
    "accumulate_kernel", "gather_matmul_kernel",
)  # fmt: skip
# What above the golden table is worth a look.
SLACK = {"registers": 16, "per_score": 0.25, "per_hit": 4, "per_logit": 0.5}
SLACK |= {"per_element": 0.25, "per_latent": 2, "per_key": 8}
# Of kernels that gather rows of whole tiles, of 16 and of 32 bits: instructions per element, and bytes of a row that a
# thread loads at once. A slice of W_dec has to stay in L2, so its rows are read by 8 bytes.
GATHERS = {
    "decode_kernel": (5.0, 5.0, 8),
    "gather_dot_kernel": (3.5, 2.5, 16),
    "piece_kernel": (4.0, 3.25, 16),
    "segment_outer_kernel": (4.0, 3.25, 16),
}
# Of the sum over the latents of a segment; Triton 3.6 spends some five more.
LATENTS, PER_LATENT = "segment_sum_kernel", {"3.6": (16, 30)}
# Of the screen of 16-bit operands on 128 x 128 tiles, where no score of a pack is appended, and where one is.
MOST_PER_SCORE, MOST_PER_HIT = 8, 80
# Of the loss of 16-bit operands without softcap, forward and backward, on Hopper.
MOST_PER_LOGIT = {"parts_kernel bf16 even product=ieee": 12, "slopes_kernel bf16 even product=ieee": 9}


def told(*arguments: str, python_path: str = "") -> list[dict[str, Any]]:
    """The reports of triton_aot.py, in a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [path for path in (python_path, os.environ.get("PYTHONPATH", "")) if path]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-W", "ignore", str(GPU_SCRIPTS / "triton_aot.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(architecture: int, reports: list[dict[str, Any]], triton: str) -> None:
    wrong = [f"{report['name']}: {report['error']}" for report in reports if "error" in report]
    assert not wrong, "\n".join(wrong)
    for report in reports:
        name = report["name"]
        assert report["stack"] == 0, f"{name}: {report['stack']} bytes of registers spilled"
        assert report["shared"] <= SHARED_LIMIT[architecture], f"{name}: {report['shared']} bytes of shared memory"
        # float32 products to the last bit are not for tensor cores.
        single = "*fp32" in report["dtypes"][:1] and name.startswith(("dense_kernel", "gather_matmul_kernel"))
        fused = single and report["constants"].get("PRODUCT", "ieee") == "ieee"
        if report["kernel"] in WITH_PRODUCTS and not fused:
            assert report[PRODUCT[architecture]] > 0, f"{name}: no {PRODUCT[architecture]} instruction"
            if report["constants"]["EVEN"]:
                assert report["async"] > 0, f"{name}: no asynchronous copies"
            assert (report["tma"] > 0) == bool(report["constants"].get("TMA")), f"{name}: tensor copies"
        if name.startswith(("screen_kernel bf16", "screen_hopper_kernel")):
            check_screen(architecture, report)
        if report["kernel"] in GATHERS and report["constants"]["EVEN"] and architecture < 100:
            check_gather(report)
        if report["kernel"] == LATENTS and architecture < 100:
            least, most = PER_LATENT.get(triton, (16, 24))
            assert least <= report["per_latent"] <= most, f"{name}: {report['per_latent']} instructions per latent"
    found = {report["name"]: report.get("per_logit") for report in reports}
    for name, most in MOST_PER_LOGIT.items() if architecture == 90 else ():
        assert 6 <= found[name] <= most, f"{name}: {found[name]} instructions per logit and stream"


def check_gather(report: dict[str, Any]) -> None:
    """Little but arithmetic in the loop, rows in wide loads."""
    name = report["name"]
    half, single, width = GATHERS[report["kernel"]]
    most = single if " fp32 " in name else half
    assert 1 <= report["per_element"] <= most, f"{name}: {report['per_element']} instructions per element"
    assert report["loads"].split()[0].endswith(f"x{width}"), f"{name}: loads {report['loads']}"


def check_screen(architecture: int, report: dict[str, Any]) -> None:
    """The epilogue is short, and from Hopper on two blocks share a multiprocessor."""
    name = report["name"]
    assert 2 <= report["per_score"] <= MOST_PER_SCORE, f"{name}: {report['per_score']} instructions per score"
    assert report["per_hit"] <= MOST_PER_HIT, f"{name}: {report['per_hit']} instructions more for a hit"
    if report["kernel"] == "screen_hopper_kernel":  # eight consumers, a producer and three idle warps have it alone
        assert (report["num_warps"], report["registers"], report["blocks"]) == (12, 168, 1), name
    elif architecture >= 90:
        assert report["blocks"] >= 2, f"{name}: {report['registers']} registers, one block"


def check_golden(triton: str, architecture: int, reports: list[dict[str, Any]], first: bool = False) -> None:
    """No kernel costs more than the table says; `first` where each kernel's first launch was compiled alone."""
    golden = json.loads(GOLDEN.read_text())
    if triton not in golden:
        pytest.skip(f"the golden table has nothing for Triton {triton}; spills and instructions were checked")
    expected = golden[triton][str(architecture)]
    found = {report["name"]: report for report in reports}
    advice = "see `python tests/helpers/gpu/triton_aot.py --write 80 90 100`"
    if first:
        assert found.keys() <= expected.keys(), f"others than in tests/gpu/golden/{GOLDEN.name}; {advice}"
        assert {name.split()[0] for name in found} == {name.split()[0] for name in expected}, advice
        expected = {name: expected[name] for name in found}
    assert found.keys() == expected.keys(), f"other kernels than in tests/gpu/golden/{GOLDEN.name}; {advice}"
    wrong = [
        f"{name}: {what} {found[name][what]}, was {held}"
        for name, row in expected.items()
        for what, held in row.items()
        if worse(what, found[name][what], held)
    ]
    assert not wrong, f"more than in tests/gpu/golden/{GOLDEN.name}; {advice}: {wrong}"


def worse(what: str, found: Any, held: Any) -> bool:
    """Whether a kernel has become worse than the table says; how it loads and stores is to be as it was."""
    if isinstance(held, str):
        return bool(found != held)
    return bool(found < held if what == "blocks" else found > held + SLACK[what])


def version() -> str:
    """Of the Triton that is here."""
    return ".".join(__import__("triton").__version__.split(".")[:2])


@pytest.mark.slow  # each compiles for a minute
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_resources_of_each_kernel(architecture: int) -> None:
    reports = told("--first", str(architecture))
    assert len(reports) > 15
    check(architecture, reports, version())
    check_golden(version(), architecture, reports, first=True)


@pytest.mark.slow  # each compiles for minutes
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_resources(architecture: int) -> None:
    reports = told(str(architecture))
    assert len(reports) > 40
    check(architecture, reports, version())
    assert sum("screen_hopper_kernel" in report["name"] for report in reports) == (3 if architecture == 90 else 0)
    check_golden(version(), architecture, reports)


@cache
def for_amd() -> list[dict[str, Any]]:
    return told("--plain", "gfx942", "gfx90a")


def check_amd(*kernels: str) -> None:
    """Without spills, and two waves share a SIMD."""
    found = {(report["kernel"], report["architecture"]): report for report in for_amd()}
    for key in itertools.product(kernels, ("gfx942", "gfx90a")):
        assert found[key]["vgpr_count"] <= 256, found[key]
        assert found[key]["vgpr_spill_count"] == 0, found[key]


@pytest.mark.slow
def test_the_screen_without_ptx_compiles_for_amd() -> None:
    check_amd("screen_kernel")


@pytest.mark.slow
def test_gather_matmul_compiles_for_amd() -> None:
    check_amd("gather_matmul_kernel")


@pytest.mark.slow
def test_the_loss_without_ptx_compiles_for_amd() -> None:
    check_amd("parts_kernel", "slopes_kernel", "accumulate_kernel")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("first", [True, False], ids=["of_each_kernel", "of_all"])
def test_resources_on_triton_3_6(architecture: int, first: bool, tmp_path: Path) -> None:
    """The version that torch 2.11 brings, fetched for the occasion."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), "triton==3.6.0"]
    subprocess.run(install, check=True)
    reports = told(*["--first"] * first, str(architecture), python_path=str(tmp_path))
    check(architecture, reports, "3.6")
    check_golden("3.6", architecture, reports, first)
