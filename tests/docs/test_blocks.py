"""Every block of Python in README and docs runs; every command in them is one that the parser takes."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import saekernels
from places import ROOT
from saekernels.cli import main
from saekernels.cli.entry import build_parser
from saekernels.example import SAE_DIRS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The tutorial is compared with its output by test_docs.py.
RUNNING = [path for path in PAGES if "```python\n" in path.read_text() and path.name != "tutorial.md"]
PEERS = ("sae_lens", "sparsify", "dictionary_learning", "circuit_tracer")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of the blocks; path/to/sae is a checkpoint of SAELens."""
    monkeypatch.chdir(tmp_path)
    saekernels.save(saekernels.load(SAE_DIRS["model.layers.0"]), tmp_path / "path" / "to" / "sae")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def run(page: Path, whole: bool) -> int:
    """Run a page's blocks in one namespace, those of other tools too if `whole`; how many ran."""
    state: dict[str, object] = {"__name__": page.stem}
    ran = 0
    for block in blocks(page, "python"):
        code = compile(block, named(page), "exec")
        if whole or not (is_recipe(page) or peers_of(block)):
            exec(code, state)
            ran += 1
    return ran


def peers_of(block: str) -> list[str]:
    return [tool for tool in PEERS if re.search(rf"^\s*(import|from) {tool}\b", block, re.MULTILINE)]


def is_recipe(page: Path) -> bool:
    """Whether a page is about the models of another tool, which test_recipes.py runs."""
    return page.stem in ("nnsight", "transformer_lens")


MIXED = [page for page in RUNNING if not is_recipe(page) and any(map(peers_of, blocks(page, "python")))]


@pytest.mark.parametrize("page", RUNNING, ids=named)
def test_blocks_of_python_run(page: Path, desk: Path) -> None:
    """In order, each page in a namespace of its own; blocks that import another tool are compiled."""
    own = 0 if is_recipe(page) else sum(not peers_of(block) for block in blocks(page, "python"))
    assert run(page, whole=False) == own


@pytest.mark.peers
@pytest.mark.parametrize("page", MIXED, ids=named)
def test_blocks_of_python_run_beside_other_tools(page: Path, desk: Path) -> None:
    for tool in itertools.chain.from_iterable(map(peers_of, blocks(page, "python"))):
        pytest.importorskip(tool)
    assert run(page, whole=True) == len(blocks(page, "python"))


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `saekernels ...` in a page's blocks of bash, torchrun's and python -m's too."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for part in " ".join(map(shlex.quote, words)).split(" '&&' "):
                own = shlex.split(part)
                if "saekernels" in own and (own[0] == "saekernels" or own[own.index("saekernels") - 1] == "-m"):
                    found.append(own[own.index("saekernels") + 1 :])
    return found


@pytest.mark.parametrize("page", [path for path in PAGES if commands(path)], ids=named)
def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        arguments = build_parser().parse_args(words)
        assert arguments.command == words[0], words


def test_there_are_commands_and_blocks() -> None:
    """What the tests above find is not nothing."""
    assert sum(len(commands(page)) for page in PAGES) >= 25
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 15
    assert ["eval"] in commands(ROOT / "README.md")


def test_scripts_in_commands_exist() -> None:
    for page in PAGES:
        for block in blocks(page, "bash"):
            for script in re.findall(r"\bpython (?!-m)(\S+)", block):
                assert (ROOT / script).exists(), f"{named(page)}: {script}"


def test_what_a_page_shows_of_a_command_is_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """A ```text block that begins with "$ saekernels"."""
    seen = 0
    for page in PAGES:
        for block in blocks(page, "text"):
            if block.startswith("$ saekernels "):
                command, _, shown = block.partition("\n")
                assert main(shlex.split(command)[2:]) == 0
                assert capsys.readouterr().out.strip() == shown.strip(), named(page)
                seen += 1
    assert seen >= 1


@pytest.mark.parametrize("command", [["info"], ["bench", "gpu", "--dry-run", "--card", "H100"]], ids=" ".join)
def test_cheap_commands_run(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert any(command == words for page in PAGES for words in commands(page))
    assert main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5
