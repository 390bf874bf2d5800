"""Builds the native modules with CMake; without them the package still installs and works, in pure Python.

saekernels._cpu, and where there is an nvcc saekernels._cuda, each by itself: one may fail without the other. The
outcome is recorded in saekernels/_build_info.json, which `saekernels info` prints. Environment:

    SAEKERNELS_BUILD=0          do not build native code
    SAEKERNELS_CUDA=0           do not build that for CUDA
    SAEKERNELS_REQUIRE_BUILD=1  fail instead of falling back to pure Python
    SAEKERNELS_EXAMPLE=0        leave the files of the bundled example out, as published wheels do
    CMAKE_ARGS, CXX, CUDACXX    as usual
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
RECORD = Path("saekernels") / "_build_info.json"
SKIPPED = "SAEKERNELS_BUILD=0 was set"
OFF = ("0", "false", "no", "off")

# What became of a module: ("built", "skipped" or "failed", why or with what).
Outcome = tuple[str, str]


class BuildError(Exception):
    """The native module could not be built; the message says why in one line."""


def wanted(environ: dict[str, str] | os._Environ[str]) -> bool:
    return environ.get("SAEKERNELS_BUILD", "1").lower() not in OFF


def find_nvcc(environ: dict[str, str] | os._Environ[str]) -> str | None:
    """The CUDA compiler: CUDACXX, or on PATH, or where its installer puts it."""
    return environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def find_tool(name: str) -> str | None:
    """A build tool on PATH, or beside the interpreter (an environment that was not activated)."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def write_record(directory: Path, cpu: Outcome, cuda: Outcome) -> None:
    """Leave the outcome of a build where the installed package finds it."""
    target = directory / RECORD
    target.parent.mkdir(parents=True, exist_ok=True)
    outcomes = (("cpu", cpu), ("cuda", cuda))
    named = {name: {"status": status, "detail": detail} for name, (status, detail) in outcomes}
    target.write_text(json.dumps(named) + "\n", encoding="utf-8")


def run(command: list[str]) -> None:
    """Run a build step; on failure raise BuildError with its first error line and leave the output on stderr."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode == 0:
        return
    sys.stderr.write(result.stdout)
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if "error" in line.lower()), max(len(lines) - 3, 0))
    telling = " ".join(lines[first : first + 3]) or "no output"  # CMake says what is wrong below where it is wrong
    raise BuildError(f"{Path(command[0]).name} exited with {result.returncode}: {telling[:300]}")


def cmake_commands(target: str, build_dir: Path, output_dir: Path, jobs: int | None) -> list[list[str]]:
    """The commands that configure and build "_cpu" or "_cuda". Raises BuildError where a tool is missing."""
    cmake = find_tool("cmake")
    if cmake is None:
        raise BuildError("cmake was not found")
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 is not installed") from None
    # Each build may come with tools of its own, in an isolated environment that is gone afterwards: a directory per
    # generator, and every path is given anew.
    ninja = find_tool("ninja")
    generator = ["-G", "Unix Makefiles"] if ninja is None else ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    build_dir = build_dir / target / ("make" if ninja is None else "ninja")
    definitions = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": output_dir,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "SAEKERNELS_CUDA": "ON" if target == "_cuda" else "OFF",
    }
    if target == "_cuda":
        definitions["CMAKE_CUDA_COMPILER"] = find_nvcc(os.environ) or "nvcc"
    configure = [cmake, "-S", str(ROOT), "-B", str(build_dir), *generator]
    configure += [f"-D{name}={value}" for name, value in definitions.items()]
    configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    parallel = [] if jobs is None else [str(jobs)]
    return [configure, [cmake, "--build", str(build_dir), "--target", target, "--parallel", *parallel]]


class RecordingBuildPy(build_py):
    """Copies the package and, where no native build will follow, records that."""

    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        if package.startswith("saekernels.example") and os.environ.get("SAEKERNELS_EXAMPLE", "1").lower() in OFF:
            return []
        return list(super().find_data_files(package, src_dir))

    def run(self) -> None:
        super().run()
        if not wanted(os.environ) and not self.editable_mode:
            write_record(Path(self.build_lib), ("skipped", SKIPPED), ("skipped", SKIPPED))


class CMakeBuild(build_ext):
    """Builds the native modules; a failure becomes a warning and a record, unless SAEKERNELS_REQUIRE_BUILD is set."""

    def run(self) -> None:
        output = Path(self.get_ext_fullpath("saekernels._cpu")).resolve().parent
        output.mkdir(parents=True, exist_ok=True)
        if not wanted(os.environ):
            write_record(output.parent, ("skipped", SKIPPED), ("skipped", SKIPPED))
            return
        write_record(output.parent, self.build_module("_cpu", output), self.build_cuda(output))

    def build_cuda(self, output: Path) -> Outcome:
        """saekernels._cuda, where that is wanted and possible."""
        if os.environ.get("SAEKERNELS_CUDA", "1").lower() in OFF:
            return "skipped", "SAEKERNELS_CUDA=0 was set"
        if find_nvcc(os.environ) is None:
            return "skipped", "nvcc was not found"
        return self.build_module("_cuda", output)

    def build_module(self, target: str, output: Path) -> Outcome:
        """Build one module into `output`; leaves none from before if that fails."""
        try:
            for stale in output.glob(f"{target}.*.so"):  # never shipped by a build that fails
                stale.unlink()
            for command in cmake_commands(target, Path(self.build_temp).resolve(), output, self.parallel):
                run(command)
        except (BuildError, OSError) as error:
            if os.environ.get("SAEKERNELS_REQUIRE_BUILD", "0") not in ("", "0"):
                raise
            sys.stderr.write(
                f"warning: {target.lstrip('_')}: native kernels were not built: {error}\n"
                "warning: saekernels computes without them; see `saekernels info`\n"
            )
            return "failed", str(error)
        return "built", f"by {sys.implementation.name} {sys.version.split()[0]} with CMake"


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("saekernels._cpu", sources=[])] if wanted(os.environ) else [],
        cmdclass={"build_ext": CMakeBuild, "build_py": RecordingBuildPy},
    )
