"""Builds the native module with CMake; without it the package still installs and works, in pure Python.

The outcome is recorded in saekernels/_build_info.json, which `saekernels info` prints. Environment:

    SAEKERNELS_BUILD=0          do not build native code
    SAEKERNELS_REQUIRE_BUILD=1  fail instead of falling back to pure Python
    CMAKE_ARGS, CXX             as usual
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


class BuildError(Exception):
    """The native module could not be built; the message says why in one line."""


def wanted(environ: dict[str, str] | os._Environ[str]) -> bool:
    return environ.get("SAEKERNELS_BUILD", "1").lower() not in ("0", "false", "no", "off")


def find_tool(name: str) -> str | None:
    """A build tool on PATH, or beside the interpreter (an environment that was not activated)."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def write_record(directory: Path, status: str, detail: str) -> None:
    """Leave the outcome of a build where the installed package finds it."""
    target = directory / RECORD
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"status": status, "detail": detail}) + "\n", encoding="utf-8")


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


def cmake_commands(build_dir: Path, output_dir: Path, jobs: int | None) -> list[list[str]]:
    """The configure and build commands. Raises BuildError where a tool is missing."""
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
    build_dir = build_dir / ("make" if ninja is None else "ninja")
    definitions = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": output_dir,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    configure = [cmake, "-S", str(ROOT), "-B", str(build_dir), *generator]
    configure += [f"-D{name}={value}" for name, value in definitions.items()]
    configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    parallel = [] if jobs is None else [str(jobs)]
    return [configure, [cmake, "--build", str(build_dir), "--target", "_cpu", "--parallel", *parallel]]


class RecordingBuildPy(build_py):
    """Copies the package and, where no native build will follow, records that."""

    def run(self) -> None:
        super().run()
        if not wanted(os.environ) and not self.editable_mode:
            write_record(Path(self.build_lib), "skipped", SKIPPED)


class CMakeBuild(build_ext):
    """Builds saekernels._cpu; a failure becomes a warning and a record, unless SAEKERNELS_REQUIRE_BUILD is set."""

    def run(self) -> None:
        output = Path(self.get_ext_fullpath("saekernels._cpu")).resolve().parent
        output.mkdir(parents=True, exist_ok=True)
        try:
            if not wanted(os.environ):
                status, detail = "skipped", SKIPPED
            else:
                self.build_native(output)
                status, detail = "built", f"by {sys.implementation.name} {sys.version.split()[0]} with CMake"
        except (BuildError, OSError) as error:
            if os.environ.get("SAEKERNELS_REQUIRE_BUILD", "0") not in ("", "0"):
                raise
            status, detail = "failed", str(error)
            sys.stderr.write(
                f"warning: native kernels were not built: {detail}\n"
                "warning: saekernels is installed as pure Python and computes with torch; see `saekernels info`\n"
            )
        write_record(output.parent, status, detail)

    def build_native(self, output: Path) -> None:
        for stale in output.glob("_cpu.*.so"):  # never shipped by a build that fails
            stale.unlink()
        for command in cmake_commands(Path(self.build_temp).resolve(), output, self.parallel):
            run(command)


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("saekernels._cpu", sources=[])] if wanted(os.environ) else [],
        cmdclass={"build_ext": CMakeBuild, "build_py": RecordingBuildPy},
    )
