"""csrc/cuda through nvcc for every architecture: no warnings, no spills, room in shared memory; and the module it
became.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from places import ROOT
from saekernels import _build_info
from saekernels.backends import cuda

CSRC = ROOT / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
SOURCES = sorted(path.stem for path in (CSRC / "cuda").glob("*.cu"))
# What lets two blocks of 256 threads share a multiprocessor, and what every GPU has without asking for more.
MOST_REGISTERS = 64
MOST_SHARED = 48 * 1024


@pytest.mark.skipif(NVCC is None, reason="nvcc was not found")
@pytest.mark.parametrize(
    "architecture", ["90a", *(pytest.param(one, marks=pytest.mark.slow) for one in ("80", "100", "120"))]
)
@pytest.mark.parametrize("source", SOURCES)
def test_compiles_without_spills(source: str, architecture: str, tmp_path: Path) -> None:
    code = f"arch=compute_{architecture},code=sm_{architecture}"
    options = ["-std=c++17", "-O3", f"-I{CSRC}", "-gencode", code, "-Werror", "all-warnings", "-Xptxas", "-v", "-cubin"]
    command = [str(NVCC), *options, "-o", str(tmp_path / "kernel.cubin"), str(CSRC / "cuda" / f"{source}.cu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)'", done.stderr)
    assert kernels
    spills = [int(found) for found in re.findall(r"(\d+) bytes spill", done.stderr)]
    assert spills, done.stderr
    assert not any(spills), done.stderr
    registers = [int(found) for found in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(registers) == len(kernels), done.stderr
    assert max(registers) <= MOST_REGISTERS, done.stderr
    assert max([int(found) for found in re.findall(r"(\d+) bytes smem", done.stderr)], default=0) <= MOST_SHARED


@pytest.mark.skipif(_build_info.read("cuda")["status"] != "built", reason="the CUDA module was not built")
def test_the_module_says_what_it_is() -> None:
    native = importlib.import_module("saekernels._cuda")
    assert "90a-real" in native.architectures()
    assert native.compiler().startswith("nvcc ")
    assert native.MOST_KEPT == cuda.MOST_KEPT
    # One row of a million scores is shared by as many blocks as there is work for.
    assert native.topk_scratch(1, 1_000_000, 64, 132) == 123 * 64
    assert native.topk_scratch(8192, 1_000_000, 64, 132) == 0
    assert native.group_scratch(1000) == 4 * (3 * 1000 + 256)


def test_reasons_are_given_without_a_gpu() -> None:
    if cuda.available() is None:
        pytest.skip("there is a GPU")
    reason = cuda.available()
    assert reason == "no CUDA device" or reason.startswith("native module")
    assert "build" in cuda.describe()
