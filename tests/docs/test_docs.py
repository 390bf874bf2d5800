"""The tutorial and its notebook run, the reference names everything public, links lead somewhere, the site builds."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib import pyplot

import saekernels
from places import ROOT
from saekernels import optim, parallel, training

NOTEBOOK = ROOT / "docs" / "start" / "notebook.ipynb"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
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


@pytest.fixture
def no_screen() -> Iterator[None]:
    before = matplotlib.get_backend()
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(before)


def cells() -> list[dict[str, Any]]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def ran(source: str, state: dict[str, Any]) -> object:
    """The value of a cell's last line, if that is an expression, as a kernel shows it."""
    *body, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        body.append(last)
    exec(compile(ast.Module(body, []), "cell", "exec"), state)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), state) if isinstance(last, ast.Expr) else None


def test_the_notebook_is_committed_without_outputs() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    assert len({cell["id"] for cell in cells()}) == len(cells())
    assert max(len(line.rstrip("\n")) for cell in cells() for line in cell["source"]) <= 120


def test_the_notebooks_cells_run_and_show(no_screen: None, capsys: pytest.CaptureFixture[str]) -> None:
    state: dict[str, Any] = {"__name__": "notebook"}
    pyplot.close("all")
    shown = [ran("".join(cell["source"]), state) for cell in cells() if cell["cell_type"] == "code"]
    drawn = {type(one).__name__: one._repr_html_() for one in shown if hasattr(one, "_repr_html_")}
    assert set(drawn) == {"SAE", "Codes", "Report"}
    assert "TopK(k=32)" in drawn["SAE"]
    report = state["report"]
    assert f"{report.all_sites.delta_ce.nats:+.3f}" in drawn["Report"]
    assert len(pyplot.get_fignums()) == 2
    assert state["right"].get_title() == "By domain"
    assert shown[-1] == state["watched"].events
    assert all(isinstance(one, saekernels.Fired) and one.latent == 865 for one in shown[-1])
    assert shown[-1]
    assert "nats per token clean" in capsys.readouterr().out


def test_the_reference_names_everything_public() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    named = {line[4:].strip() for page in pages for line in page.read_text().splitlines() if line.startswith("::: ")}
    rooms = (saekernels, parallel, optim, training)
    assert named == {f"{room.__name__}.{name}" for room in rooms for name in room.__all__}
    for one in (getattr(room, name) for room in rooms for name in room.__all__):
        assert one.__doc__, f"{one} says nothing"
        assert len(one.__doc__) > 30, f"{one} says nothing"


DOCS = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / n for n in ("README.md", "SECURITY.md", "CHANGELOG.md"))]
PAGES = [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere() -> None:
    docs = ROOT / "docs"
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in docs.rglob("*.md"):
        assert str(page.relative_to(docs)) in navigation, page
    for page in PAGES:
        text = page.read_text()
        targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
        for target in targets:
            # GitHub resolves ../../actions from a README to the repository's own page of runs.
            elsewhere = target.startswith(("http", "../../actions/"))
            assert elsewhere or (page.parent / target).exists(), f"{page}: {target}"


def test_every_anchor_is_a_heading() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            if not target.startswith("http"):
                headings = re.findall(
                    r"^#+ (.*)$", (page.parent / target if target else page).read_text(), re.MULTILINE
                )
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page}: {target}#{anchor}"


def test_lines_are_at_most_120_wide() -> None:
    """Tables aside, whose rows cannot be broken; README's can."""
    for page in DOCS:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            free = line.startswith("|") and page.name != "README.md"
            assert free or len(line) <= 120, f"{page}:{number}: {len(line)} columns"


def test_readme_is_a_front_page() -> None:
    """At most 150 lines, doors of at most eight lines of code; prose breaks at the ends of sentences."""
    page = (ROOT / "README.md").read_text()
    lines = page.splitlines()
    doors = [content.split("\n") for kind, content in _FENCE.findall(page) if kind == "python"]
    assert [sum(map(bool, door)) <= 8 for door in doors] == [True] * 3
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120
    fenced = False
    for line in lines:
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("|", "[", "<", " ")):
            assert not re.search(r"[a-z)][.!?] [A-Z]", re.sub(r"\*\*.*?\*\*|`[^`]*`", "", line)), line


def test_paths_that_pages_name_exist() -> None:
    """In backticks or commands: tests/..., saekernels/..., csrc/..., tools/..."""
    for page in DOCS:
        for path in re.findall(r"\b((?:tests|saekernels|csrc|tools)/[\w/]+\.\w+)", page.read_text()):
            assert (ROOT / path).exists(), f"{page}: {path}"


@pytest.mark.slow
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
