"""Does a published wheel work where nothing can be compiled? Run in a new environment, away from the sources.

    python tools/wheels/check.py /usr/bin/python3.11 /usr/bin/python3.12 --dist dist
    python tools/wheels/check.py /usr/bin/python3.12 --without-torch

PATH holds the environment alone, so there is no compiler and no cmake, and torch's headers are removed from it. There
`saekernels info` must call the cpu backend usable, the conformance tests of some ops pass on it, and the README's first
evaluation prints its figures. Without torch, where none for the CPU is to be had: the native module alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SLICE = ("ops/test_topk.py", "ops/test_decode.py", "ops/test_encode_topk.py")
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))
# Two rows of scores through the native module, by their addresses.
NATIVE = """
import array, glob, importlib.util, sys
(path,) = glob.glob(sys.argv[1] + "/saekernels/_cpu*.so")
spec = importlib.util.spec_from_file_location("_cpu", path)
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
for level in native.supported_simd_levels().split(","):
    native.set_simd_level(level)
    scores = array.array("f", [1, 5, 3, 4, 9, 7, 8, 2])
    values, indices = array.array("f", bytes(16)), array.array("i", bytes(16))
    address = lambda numbers: numbers.buffer_info()[0]
    native.topk((address(scores), 2, 4, 4, 1, 0), 2, 1, address(values), address(indices))
    assert values.tolist() == [5, 4, 9, 8], (level, values)
    assert indices.tolist() == [1, 3, 0, 2], (level, indices)
print("native module:", native.compiler(), "levels", native.supported_simd_levels())
"""


def check(python: str, dist: Path, with_torch: bool) -> None:
    """Of the wheel in `dist` for that interpreter. Ends the process, with the output, at what fails."""
    tag = _told([python, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])"]).strip()
    (wheel,) = dist.glob(f"saekernels-*-{tag}-{tag}-*.whl")
    with tempfile.TemporaryDirectory(prefix="saekernels-wheel-") as made:
        place = Path(made)
        _told([python, "-m", "venv", str(place)])
        scripts = place / "bin"
        alone = {"PATH": str(scripts), "HOME": made, "TMPDIR": made}
        assert not any(shutil.which(tool, path=alone["PATH"]) for tool in ("c++", "cc", "g++", "clang", "cmake"))
        install = [str(scripts / "python"), "-m", "pip", "install", "-q", *CONSTRAINTS]
        if not with_torch:
            _told([*install, "--no-deps", str(wheel)])
            (packages,) = place.glob("lib/python*/site-packages")
            print(f"{wheel.name}: {_told([str(scripts / 'python'), '-c', NATIVE, str(packages)], alone).strip()}")
            return
        _told([*install, "--find-links", str(dist), f"{wheel}[eval,example]", "pytest", "pytest-xdist", "hypothesis"])
        for headers in place.glob("lib/python*/site-packages/torch/include"):
            shutil.rmtree(headers)
        info = _told([str(scripts / "saekernels"), "info"], alone, cwd=place)
        usable = re.search(r"backend cpu.*\n(?: .*\n)*? +status: +usable", info)
        assert usable, f"{wheel.name}: the cpu backend is not usable:\n{info}"
        # Not python -m pytest, which would put the sources, where nothing is built, before what was installed.
        tests = [str(ROOT / "tests" / name) for name in SLICE]
        quiet = ["-q", "-n0", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
        passed = _told([str(scripts / "pytest"), *quiet, *tests], alone, cwd=place).strip().splitlines()[-1]
        figures = _told([str(scripts / "saekernels"), "eval"], alone, cwd=place)
        together = re.search(r"^ ?(?:all )?together .*", figures, re.MULTILINE)
        if together is None:
            sys.exit(f"{wheel.name}: saekernels eval prints no figures:\n{figures[-4000:]}")
        print(f"{wheel.name}: cpu usable; conformance: {passed}; saekernels eval: {' '.join(together[0].split())}")


def _told(command: list[str], environment: dict[str, str] | None = None, **options: object) -> str:
    """stdout of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(command)[:200]} exited with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return str(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interpreters", nargs="+", metavar="PYTHON")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", metavar="DIR", help="where the wheels are")
    parser.add_argument("--without-torch", action="store_true", help="the native module alone")
    arguments = parser.parse_args()
    for python in arguments.interpreters:
        check(python, arguments.dist, not arguments.without_torch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
