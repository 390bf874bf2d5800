"""What holds for the tests themselves: which package they import, where they take helpers from, what `quick` means."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import places
from places import ROOT, TESTS

PAGES = ("pyproject.toml", "noxfile.py", ".ci/run", "README.md")


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, at its top or anywhere inside."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_no_test_file_imports_another() -> None:
    files = list(TESTS.rglob("test_*.py"))
    assert len(files) > 70
    for path in TESTS.rglob("*.py"):
        others = {name for name in imported(path) if name.rpartition(".")[2].startswith("test_")}
        assert not others, f"{path.relative_to(ROOT)} imports {others}: what tests share belongs in tests/helpers"


def test_every_test_that_is_named_somewhere_is_there() -> None:
    named = {
        (page, name)
        for pattern in PAGES
        for page in ROOT.glob(pattern)
        for name in re.findall(r"\btests/[\w/]+\.py\b", page.read_text())
    }
    assert len(named) >= 5
    assert [(str(page), name) for page, name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the package's Python sources, as an installation has them."""
    shutil.copytree(ROOT / "saekernels", tmp_path / "saekernels", ignore=shutil.ignore_patterns("example", "_c*.so"))
    for path in (ROOT / "saekernels" / "example").rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return tmp_path / "saekernels"


def test_an_installed_copy_of_the_same_sources_will_do(installed: Path) -> None:
    assert places.difference(ROOT / "saekernels") is None
    assert places.difference(installed) is None


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("sae/module.py", lambda path: path.write_text(path.read_text() + "\n"), "sae/module.py differs"),
        ("sae/module.py", Path.unlink, "sae/module.py is missing"),
        ("sae/modules.py", Path.touch, "sae/modules.py is in no checkout"),
    ],
)
def test_a_copy_of_other_sources_is_told_by_its_file(name: str, change: object, told: str, installed: Path) -> None:
    change(installed / name)  # type: ignore[operator]
    assert places.difference(installed) == told


def test_no_test_runs_on_another_copy(installed: Path) -> None:
    """One line, before anything of that copy is imported."""
    (installed / "__init__.py").write_text("raise SystemError('imported')\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n0", str(TESTS / "ops" / "test_topk.py")]
    environment = {**os.environ, "PYTHONPATH": str(installed.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=installed.parent, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr == (
        f"the tests of {ROOT} would import another saekernels, of {installed}, where __init__.py differs: "
        "run `pip install .` again, or once `pip install -e . --no-build-isolation`\n"
    )
