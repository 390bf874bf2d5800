"""What contributors and their tools read: paths that exist, files that parse, versions that agree."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import saekernels
from places import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHOWN = re.sub(r"<!-- floors -->.*?<!-- end -->", "", PAGE, flags=re.DOTALL)
YAML = sorted(path.relative_to(ROOT).as_posix() for path in (
    *ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff", ROOT / "mkdocs.yml"
))  # fmt: skip
WORKFLOWS = [name for name in YAML if "/workflows/" in name]
TOP = r"saekernels|csrc|tests|benchmarks|docs|examples|tools|\.ci|\.github"


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def pinned() -> dict[str, str]:
    """package -> the one version of constraints.txt that holds whatever the Python."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and ";" not in line and not line.startswith("#"))


def test_constraints_take_the_triton_of_any_build_of_torch() -> None:
    """torch 2.11 and 2.13 for CUDA ask for one version each, and beside a build for the CPU it is the newest."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (held,) = (Requirement(line) for line in lines if line.startswith("triton"))
    assert [version in held.specifier for version in ("3.6.0", "3.7.1", "3.9.0", "4.0.0")] == [True, True, True, False]


def test_every_path_in_contributing_exists() -> None:
    named = re.findall(rf"(?<![\w./-])((?:{TOP})/[\w./*-]*)", SHOWN)
    paths = {name.rstrip(".") for name in named}
    assert len(paths) >= 50
    assert not [path for path in sorted(paths) if not list(ROOT.glob(path.rstrip("/")))]


def test_every_name_that_contributing_gives_a_file_is_in_it() -> None:
    """`NAME` of, into or in `path`: a constant that a recipe says where to find."""
    pairs = re.findall(r"`([A-Z_]{4,})` of\s+`([\w./-]+\.py)`", SHOWN)
    assert ("PRIMITIVES", "saekernels/backends/registry.py") in pairs
    assert ("MAKERS", "benchmarks/live_objects.py") in pairs
    for name, path in pairs:
        assert re.search(rf"^{name}\b.* = ", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (name, path)


def test_the_kernel_that_contributing_changes_is_there_to_change() -> None:
    before, after, path = re.search(r"sed -i 's/(.+?)/(.+?)/' (\S+)", SHOWN).groups()  # type: ignore[union-attr]
    source = (ROOT / path).read_text(encoding="utf-8")
    assert source.count(before) == 1
    assert before != after


@pytest.mark.parametrize("name", YAML)
def test_yaml_parses(name: str) -> None:
    assert len(read(name)) >= 1


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_run_what_is_there(name: str) -> None:
    jobs = read(name)["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    parts = [part for job in jobs.values() for part in job.get("strategy", {}).get("matrix", {}).get("part", ())]
    files = re.findall(r"(?:bash|python) ([.\w/]+)", "\n".join(commands).replace("python -m", ""))
    files = [file for file in files if not file.endswith("/")] + [f".ci/{part}" for part in parts]
    assert files
    assert not [file for file in files if not (ROOT / file).is_file()]


def test_ci_runs_every_part_and_bash_reads_it() -> None:
    parts = {path.name for path in (ROOT / ".ci").iterdir()} - {"run"}
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    inside = re.search(r"for part in (.+); do", run)
    assert inside
    assert {*inside[1].split(), *re.findall(r"^ *bash \.ci/(\w+)", run, re.MULTILINE)} == parts
    jobs = read(".github/workflows/ci.yml")["jobs"]
    told = str(jobs)
    assert {part for part in parts if f".ci/{part}" in told} | set(jobs["parts"]["strategy"]["matrix"]["part"]) == parts
    for part in (ROOT / ".ci").iterdir():
        assert "\nset -euo pipefail\n" in part.read_text(encoding="utf-8"), part
        subprocess.run(["bash", "-n", str(part)], check=True)


def test_hooks_have_the_versions_of_the_constraints() -> None:
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    wanted = [text.split("==") for hook in hooks for text in hook.get("additional_dependencies", ())]
    versions = pinned()
    assert {"ruff", "clang-format", "typos"} <= {name for name, _ in wanted}
    assert [(name, version) for name, version in wanted if versions[name] != version] == []


def test_the_citation_names_this_version_and_licence() -> None:
    citation = read("CITATION.cff")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["version"] == saekernels.__version__
    assert f'license = "{citation["license"]}"' in project
    assert citation["title"] == "saekernels"


@pytest.mark.parametrize("name", [name for name in YAML if "ISSUE_TEMPLATE" in name and "config" not in name])
def test_issue_forms_ask_for_something(name: str) -> None:
    form = read(name)
    assert form["name"]
    assert form["description"]
    asked = [one for one in form["body"] if one["type"] != "markdown"]
    assert len({one["id"] for one in asked}) == len(asked) >= 2
    assert any(one.get("validations", {}).get("required") for one in asked)
