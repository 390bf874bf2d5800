"""The tutorial runs and prints what it says; the reference names everything public; the site builds where mkdocs is."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import saekernels
from places import ROOT
from saekernels import parallel, training

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_tutorial_prints_what_it_says() -> None:
    """Each ```text block is what the ```python block before it prints; "..." stands for anything."""
    blocks = _FENCE.findall((ROOT / "docs" / "start" / "tutorial.md").read_text())
    state: dict[str, object] = {"__name__": "tutorial"}
    printed, threads = "", torch.get_num_threads()
    assert sum(kind == "text" for kind, _ in blocks) >= 8
    for kind, content in blocks:
        if kind == "python":
            assert printed == "", f"not shown: {printed}"
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(content, "tutorial", "exec"), state)
            printed = out.getvalue()
        else:
            pattern = ".*?".join(map(re.escape, content.strip().split("...")))
            assert re.fullmatch(pattern, printed.strip()), f"printed:\n{printed}\nsaid:\n{content}"
            printed = ""
    assert torch.get_num_threads() == threads


def test_the_reference_names_everything_public() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    named = {line[4:].strip() for page in pages for line in page.read_text().splitlines() if line.startswith("::: ")}
    public = {f"saekernels.{name}" for name in saekernels.__all__}
    public |= {f"saekernels.parallel.{name}" for name in parallel.__all__}
    public.add("saekernels.training")
    assert named == public
    objects = [getattr(saekernels, name) for name in saekernels.__all__]
    objects += [getattr(parallel, name) for name in parallel.__all__]
    functions = [
        value for name, value in vars(training).items() if getattr(value, "__module__", "") == training.__name__
    ]
    assert functions
    for one in objects + functions:
        assert one.__doc__, f"{one} says nothing"
        assert len(one.__doc__) > 30, f"{one} says nothing"


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere() -> None:
    docs = ROOT / "docs"
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in docs.rglob("*.md"):
        assert str(page.relative_to(docs)) in navigation, page
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page}: {target}"
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md"):
        path = ROOT / page
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{page}: {target}"


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the docs extra")
def test_the_site_builds_without_a_network(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ops = (tmp_path / "site" / "reference" / "ops.html").read_text()
    assert 'id="saekernels.encode_topk"' in ops
    assert "pre_bias" in ops
    assert "saekernels plan" in (tmp_path / "site" / "reference" / "commands.html").read_text()
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r'<(script|link|img)[^>]*(src|href)="https?://(?!127)', page.read_text()), page
