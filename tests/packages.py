"""What is published, installed as users do: sdist and wheel, with a compiler and without, away from the sources.

    python tests/packages.py            # some three minutes

Builds the source distribution and, from it, the wheel; checks their files; installs each in turn into a new environment
that has what they ask for alone, and there encodes, asks for `info` and compares the versions.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEEDED = (
    "saekernels/__init__.py",
    "saekernels/py.typed",
    "saekernels/eval/report/schema.json",
    "saekernels/eval/report/replacement/schema.json",
    "saekernels/bench/cpu/schema.json",
    "saekernels/display/page.css",
    "saekernels/display/page.js",
    "saekernels/example/model/model.safetensors",
    "saekernels_command.py",
)
OF_SOURCES = ("csrc/cpu/encode/encode_topk.cpp", "csrc/cuda/topk.cu", "csrc/common/keys.h", "CMakeLists.txt", "LICENSE")
UNWANTED = re.compile(r"(__pycache__|\.pyc$|_build_info\.json$|\.so$|(^|/)build/|\.egg-info/.*\.so)")
PROGRAM = """
import torch, saekernels
from importlib.metadata import version
assert version("saekernels") == saekernels.__version__, (version("saekernels"), saekernels.__version__)
x, W = torch.randn(5, 16), torch.randn(64, 16)
codes = saekernels.encode_topk(x, W, k=4)
want = (x @ W.T).topk(4)
assert torch.equal(codes.indices.long(), want.indices)
from saekernels.backends import registry
native = registry.load("cpu").available()
print("native:", "yes" if native is None else f"no, {native}")
"""


def run(*command: str, **options: object) -> str:
    """stdout of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(
            f"{' '.join(command)[:200]} exited with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return str(done.stdout)


def built(folder: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it without a compiler, so that it fits anywhere."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", str(folder), str(ROOT))
    (sdist,) = folder.glob("*.tar.gz")
    environment = {**os.environ, "SAEKERNELS_BUILD": "0"}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(sdist)]
    run(*command, env=environment)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def check_files(sdist: Path, wheel: Path) -> None:
    """All that is needed is in them, and nothing that was built."""
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    for names, needed, what in ((sources, (*NEEDED, *OF_SOURCES), sdist), (installed, NEEDED, wheel)):
        missing = [name for name in needed if name not in names]
        assert not missing, f"{what.name} lacks {missing}"
    unwanted = [name for name in sources if UNWANTED.search(name)]
    assert not unwanted, f"{sdist.name} holds {unwanted[:5]}"
    assert not [name for name in installed if name.startswith(("tests/", "benchmarks/", "csrc/"))], wheel.name
    number = re.search(r'^__version__ = "(.+)"$', (ROOT / "saekernels/_version.py").read_text(), re.MULTILINE)
    assert number
    assert sdist.name == f"saekernels-{number[1]}.tar.gz"
    assert f"-{number[1]}-" in wheel.name


def install(place: Path, archive: Path, name: str, native: bool, environment: dict[str, str]) -> None:
    """Into that environment, and out again; `native`: whether the compiled module must be there, or must not."""
    python = str(place / "bin" / "python")
    constraints = ["-c", str(ROOT / "constraints.txt")]
    run(python, "-m", "pip", "install", "-q", *constraints, str(archive), env=environment)
    told = run(python, "-c", PROGRAM, cwd=place, env=environment)
    assert ("native: yes" in told) == native, f"{name}: {told}"
    info = run(str(place / "bin" / "saekernels"), "info", cwd=place, env=environment)
    assert "backend reference" in info
    run(python, "-m", "pip", "uninstall", "-q", "-y", "saekernels", env=environment)
    assert not list(place.rglob("saekernels*")), f"{name} leaves files behind"
    print(f"{name}: {told.strip()}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CXX", "CMAKE_ARGS")}
    with tempfile.TemporaryDirectory(prefix="saekernels-packages-") as made:
        folder = Path(made)
        sdist, wheel = built(folder)
        check_files(sdist, wheel)
        # CXX names no compiler: as on a machine without one.
        none = {**clean, "CXX": "/nowhere/c++", "CC": "/nowhere/cc", "SAEKERNELS_CUDA": "0"}
        place = folder / "environment"
        run(sys.executable, "-m", "venv", str(place))
        install(place, sdist, "sdist without a compiler", False, none)
        install(place, wheel, "wheel", False, clean)
        if shutil.which("c++"):
            install(place, sdist, "sdist with a compiler", True, {**clean, "SAEKERNELS_CUDA": "0"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
