"""What a release is held to: one version everywhere, and files of no other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from places import ROOT

spec = importlib.util.spec_from_file_location("release", ROOT / "tools/wheels/release.py")
assert spec is not None
assert spec.loader is not None
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in (
        ("saekernels/_version.py", '__version__ = "1.2.3"\n'),
        ("CITATION.cff", "cff-version: 1.2.0\nversion: 1.2.3\n"),
        ("CHANGELOG.md", "# Changelog\n\n## [1.2.3] - 2026-11-27\n\n## [1.2.2] - 2026-01-02\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_release_has_one_version(tree: Path) -> None:
    names = ["saekernels-1.2.3", "saekernels-1.2.3-cp311-cp311-any.whl", "saekernels_example-1.2.3-py3-none-any.whl"]
    assert release.wrong(tree, names) == []
    assert release.wrong(tree, names[:2]) == ["no wheel of saekernels-example"]
    assert release.wrong(tree, [*names, "saekernels-1.2.2"]) == ["saekernels-1.2.2: not of version 1.2.3"]
    (tree / "CITATION.cff").write_text("version: 1.2.2\n")
    (tree / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.2.3] - 2026-11-27\n")
    assert release.wrong(tree, names) == [
        "CITATION.cff: version 1.2.2, need 1.2.3",
        "CHANGELOG.md: first heading '[Unreleased]', need '[1.2.3] - YYYY-MM-DD'",
    ]
