"""The peers' own tests with and without the swap: no test that passed before may fail.

    pip install '.[test,peers]'
    python benchmarks/peers_suites.py              # downloads sparsify's source distribution; a minute on 2 cores
    python benchmarks/peers_suites.py --source DIR # an unpacked source distribution or checkout of any tool with tests
    python benchmarks/peers_suites.py --source SAELens --only saes training/test_sae_trainer.py

sae-lens, dictionary_learning and SAEBench ship no tests in their source distributions; for a checkout of theirs give
--source, and --only what of its tests does without models from the net. Their evaluators, models and trainers run with
and without the swap in tests/adapters/test_tools.py.

Where there is no GPU, tests are run from a copy in which "cuda" is "cpu". Exits 1 if a test that passed fails with the
swap.
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
from pathlib import Path

import torch

SUITES = ("eai-sparsify==1.3.3",)
PLUGIN = "saekernels.adapters.pytest_plugin"
_RESULT = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (\S+::\S+)", re.MULTILINE)


def download(requirement: str, folder: Path) -> Path:
    """The unpacked source distribution."""
    name, _, version = requirement.partition("==")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
    subprocess.run([*command, f"{name}=={version}"], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


def on_this_machine(source: Path, folder: Path) -> Path:
    """A copy of the tests, for the CPU where there is no GPU."""
    tests = folder / "tests"
    shutil.copytree(source / "tests", tests)
    if not torch.cuda.is_available():
        for path in tests.rglob("*.py"):
            text = path.read_text(encoding="utf-8").replace("torch.cuda.synchronize()", "pass")
            # 131,072 latents are a GPU's size.
            path.write_text(text.replace('"cuda"', '"cpu"').replace("131_072", "8_192"), encoding="utf-8")
    return tests


def outcomes(tests: Path, only: list[str], swap: bool) -> dict[str, str]:
    """Test -> PASSED, FAILED, ..."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-n", "0"]
    command += [str(tests / one) for one in only or ["."]]
    command += ["-p", PLUGIN] if swap else []
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "SPARSIFY_DISABLE_TRITON": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tests.parent, env=environment)
    found = {match[2]: match[1] for match in _RESULT.finditer(done.stdout)}
    if not found:
        raise SystemExit(f"no test ran:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found


def compare(name: str, tests: Path, only: list[str]) -> list[str]:
    """Prints both counts; the tests that the swap breaks."""
    before, after = (outcomes(tests, only, swap) for swap in (False, True))
    counts = [sum(result == "PASSED" for result in found.values()) for found in (before, after)]
    broken = [test for test, result in before.items() if result == "PASSED" and after.get(test) != "PASSED"]
    print(
        f"{name}: {counts[0]} of {len(before)} tests pass as they are, {counts[1]} with the swap; broken: {len(broken)}"
    )
    for test in broken:
        print(f"  {test}: {after.get(test, 'not run')}")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", type=Path, nargs="*", help="unpacked distributions or checkouts with a tests folder"
    )
    parser.add_argument("--only", nargs="*", default=[], help="paths in the tests folder; all of it where left out")
    args = parser.parse_args()
    broken: list[str] = []
    for given in args.source or SUITES:
        with tempfile.TemporaryDirectory() as folder:
            source = given if isinstance(given, Path) else download(given, Path(folder))
            (Path(folder) / "copy").mkdir()
            broken += compare(str(given), on_this_machine(source, Path(folder) / "copy"), args.only)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
