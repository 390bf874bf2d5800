"""Fixtures of the documentation's tests."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cli
from places import ROOT, TOOLS
from tiny_lm import SITES

REAL_MODEL = TOOLS.parent / "real_model"
PICTURES = TOOLS.parent / "pictures"
Records = dict[str, dict[str, Any]]


@pytest.fixture
def example_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by plain names; the names are gone again after the test."""
    monkeypatch.syspath_prepend(str(TOOLS))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for path in TOOLS.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def real_model_modules(example_modules: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of tools/real_model, which stand on the bundled example's."""
    monkeypatch.syspath_prepend(str(REAL_MODEL))
    yield
    for path in REAL_MODEL.glob("*.py"):
        if path.stem != "__main__":
            sys.modules.pop(path.stem, None)


@pytest.fixture
def real_model_script(real_model_modules: None) -> dict[str, Any]:
    """The names of its command."""
    return runpy.run_path(str(REAL_MODEL / "__main__.py"), run_name="real_model")


@pytest.fixture
def results_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of tools/pictures."""
    monkeypatch.syspath_prepend(str(PICTURES))
    yield
    own = {"results", *(path.stem for path in PICTURES.glob("*.py"))} - {"__main__"}
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]


@pytest.fixture
def written(results_modules: None) -> Callable[[Records], str]:
    """The page of records."""
    from results.page import results_page

    return lambda records: results_page(records, "records")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Of every kind one, made by its command from a tiny model; what was trained differently is another layer's SAE."""
    folder = tmp_path_factory.mktemp("records")
    files = cli.files(folder)
    model = ["--model", str(files["model"]), "--bootstrap", "20"]
    text = ["--data", str(files["data"])]
    both = ["--sae", *(f"{site}={files[site]}" for site in SITES)]

    def several(*labels: str) -> list[str]:
        return ["--sae", *(f"{SITES[1]}#{label}={files[SITES[n % 2]]}" for n, label in enumerate(labels, 1))]

    mlps = ["--sae", *(f"{site}.mlp@module={files[site]}" for site in SITES)]
    tasks = ["--tasks", str(_tasks(folder))]
    commands = {
        "sites": ["eval", *model, *text, *both, "--baselines", "none", "--leave-first", "1"],
        "head50k": ["eval", *model, *text, *both, "--baselines", "none", "--no-cumulative", "--tokens", "200"],
        "baselines": ["eval", *model, *text, *both, "--no-cumulative", *tasks],
        "tasks": ["eval", *model, *text, *both[:2], "--baselines", "none", *tasks],
        "bfloat16": ["eval", *model, *text, *both, "--baselines", "none", "--no-cumulative", "--leave-first", "1",
                     "--dtype", "bfloat16"],
        "curve": ["controls", *model, *text, "--parts", "bits", *several("32", "64")],
        "controls": ["eval", *model, *text, "--baselines", "none", "--leave-first", "1",
                     *several("none-0", "decoder-0", "decoder-1")],
        "shuffled": ["eval", *model, *text, "--baselines", "none", *several("none-0"), "--control", "shuffled_decoder"],
        "seeds": ["controls", *model, *text, "--parts", "seeds", *several("0", "1", "2"), "--off-data", *text[1:]],
        "error": ["controls", *model, *text, "--parts", "error", *both],
        "probe": ["probe", *model, *both, "--labels", str(_labels(folder)), "--latents", "1"],
        "transcoders": ["eval", *model, *text, *mlps, "--baselines", "zero,mean", "--no-cumulative"],
    }  # fmt: skip
    made: Records = {}
    for name, command in commands.items():
        path = folder / f"{name}.json"
        done = cli.run([*command, "--json", str(path)])
        assert done.code == 0, (name, done.err)
        made[name] = json.loads(path.read_text(encoding="utf-8"))
    floor = runpy.run_path(str(ROOT / "benchmarks" / "eval_floor.py"))["main"]
    made["floor"] = floor([*model[:2], *text, *both, "--tokens", "40", "--rounds", "3",
                           "--beside", "bfloat16"])  # fmt: skip
    ngrams = runpy.run_path(str(REAL_MODEL / "ngrams.py"))["main"]
    ngrams([*model[:2], "--train", *text[1:], *text, "--report", str(folder / "sites.json"), "--orders", "2",
            "--json", str(folder / "ngrams.json")])  # fmt: skip
    made["ngrams"] = json.loads((folder / "ngrams.json").read_text(encoding="utf-8"))
    train = ROOT / "benchmarks" / "results" / "smollm2-135m" / "train.json"
    return {**made, "train": json.loads(train.read_text(encoding="utf-8"))}


def _tasks(folder: Path) -> Path:
    path = folder / "tasks.yaml"
    path.write_text('{name: x, template: "the {w}", answer: " light", foil: " coal", product: {w: [a, old, wind]}}')
    return path


def _labels(folder: Path) -> Path:
    """Right and wrong ends of 30 prompts in each of two languages."""
    path = folder / "labels.jsonl"
    records = []
    for language, start in (("x", "the"), ("y", "sum")):
        for number in range(30):
            prompt = f"{start}{' he' * (number % 10)}{' of the' * (number // 10)}"
            both = {"prompt": prompt, "answer": " light", "foil": " coal", "group": prompt, "language": language}
            records += [{**both, "text": prompt + both[end], "label": end} for end in ("answer", "foil")]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
