"""The ops with the native code built under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from places import ROOT

OPS = (
    "encode_topk",
    "encode_threshold",
    "topk",
    "decode",
    "decode_csr",
    "gather_matmul",
    "linear_ce_kl",
    "gradients",
    "wrong arguments",
)


def run(arguments: list[str]) -> int:
    """Build, and start the fuzzer again with the sanitized module in front; its exit code."""
    import pybind11

    with tempfile.TemporaryDirectory(prefix="saekernels-asan-") as made:
        build, package = Path(made) / "build", Path(made) / "package" / "saekernels"
        definitions = {
            "CMAKE_BUILD_TYPE": "RelWithDebInfo",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(package),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "SAEKERNELS_SANITIZE": "address",
            "SAEKERNELS_CUDA": "OFF",
        }
        shutil.copytree(ROOT / "saekernels", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        tool = shutil.which("cmake") or str(Path(sys.executable).parent / "cmake")
        configure = [tool, "-S", str(ROOT), "-B", str(build), *(f"-D{k}={v}" for k, v in definitions.items())]
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([tool, "--build", str(build), "--target", "_cpu", "-j2"], check=True, stdout=subprocess.DEVNULL)
        assert list(package.glob(f"_cpu*{sysconfig.get_config_var('EXT_SUFFIX')}")), "the module was not built"
        compiler = os.environ.get("CXX", "c++")
        libraries = [_library(compiler, name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")]
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "PYTHONPATH": os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]),
        }
        only = [] if "--only" in arguments else ["--only", *OPS]
        command = [sys.executable, str(ROOT / "tests" / "fuzz"), *arguments, *only]
        return subprocess.run(command, env=environment, check=False).returncode


def _library(compiler: str, name: str) -> str:
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
