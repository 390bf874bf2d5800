"""Where things lie in a checkout, and whether the package that tests import is this checkout's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
HELPERS = TESTS / "helpers"
SCRIPTS = HELPERS / "scripts"
GPU_SCRIPTS = HELPERS / "gpu"
EXAMPLES = ROOT / "examples"
BENCHMARKS = ROOT / "benchmarks"
TOOLS = ROOT / "tools" / "bundled_example"
SOURCES = ROOT / "saekernels"
AGAIN = "run `pip install .` again, or once `pip install -e . --no-build-isolation`"


def difference(package: Path) -> str | None:
    """The first Python source in which a copy of the package differs from the checkout's, and how; None if none does.

    An installation by `pip install .` is such a copy, until the checkout changes.
    """
    if package.resolve() == SOURCES:
        return None
    ours, theirs = ({path.relative_to(top) for path in top.rglob("*.py")} for top in (SOURCES, package))
    for path in sorted(ours | theirs):
        if path not in theirs:
            return f"{path} is missing"
        if path not in ours:
            return f"{path} is in no checkout"
        if (SOURCES / path).read_bytes() != (package / path).read_bytes():
            return f"{path} differs"
    return None


def require_same_sources() -> None:
    """End the process with one line where tests would import anything else, without importing it."""
    spec = importlib.util.find_spec("saekernels")
    if spec is None or spec.origin is None:
        sys.exit(f"the tests of {ROOT} find no package saekernels: {AGAIN}")
    package = Path(spec.origin).parent
    if why := difference(package):
        sys.exit(f"the tests of {ROOT} would import another saekernels, of {package}, where {why}: {AGAIN}")
