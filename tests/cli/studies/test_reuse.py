"""`saekernels reuse` from the command line: what it prints is what it writes, on toy files, and what it refuses."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli import SITE, arguments, commands, fails, put, run
from saekernels.display.numbers import percent, signed
from saekernels.eval import load_documents
from saekernels.eval.report.reuse.text import reuse_sentence
from saekernels.eval.studies.reuse.measure import measure_reuse
from saekernels.eval.studies.reuse.options import Options
from saekernels.eval.text.windows import Tokens
from saekernels.formats import load
from saekernels.splice.leave import Leave
from tiny_lm import SITES


def test_tables_show_the_figures_of_the_file(good: dict[str, Path], tmp_path: Path) -> None:
    argv = [*commands(good, tmp_path)["reuse"], "--latents", "4", "32", "--leave-first", "1"]
    done = run(argv)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["run"]["command"] == f"saekernels {' '.join(argv)}"
    assert [row["site"] for row in found["sites"]] == list(SITES)
    assert found["documents"] == {"code": 5, "prose": 7}
    assert found["mask"] == {"leave_first": 1, "leave_norm": None}
    lines = done.out.splitlines()
    assert "in 2 domains; the first 1 of each window left alone" in " ".join(lines[:2])
    for row in found["sites"]:
        short = row["site"].removeprefix("model.")
        for kind in ("effect", "mass"):
            line = next(line for line in lines if line.split()[:2] == [short, kind])
            general = row[kind]["general"]
            low, high = general["ci95"]
            assert f"{percent(general['value'])} [{100 * low:.1f}, {100 * high:.1f}]" in line
        for one in row["transfer"]["curve"]:
            line = next(line for line in lines if line.split()[:2] == [short, str(one["latents"])])
            assert signed(one["home"]["value"]) in line
            assert signed(one["away"]["value"]) in line
    middle = found["sites"][1]["transfer"]["curve"][1]
    assert f"layers.1: ΔCE in each domain with the {middle['latents']} latents that matter most in one" in done.out
    for domain, row in zip(found["documents"], middle["matrix"], strict=True):
        assert [domain, *(signed(cell["value"]) for cell in row)] in [line.split() for line in lines]


def test_sharing_alone_has_no_lists(good: dict[str, Path], tmp_path: Path) -> None:
    argv = commands(good, tmp_path)["reuse"]
    at = argv.index("--latents")
    done = run([*argv[:at], *argv[at + 2 :], "--parts", "sharing"])
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "o.json").read_text())
    assert [row["transfer"] for row in found["sites"]] == [None, None]
    assert "home" not in done.out
    assert "general" in done.out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--parts", "none"], "--parts: need some of sharing, slices, links, transfer, got 'none'"),
        (["--parts", "sharing"], "--latents: it is about the part transfer, and --parts leaves that out"),
        (["--latents", "0"], "--latents: need at least 1, got 0"),
        (["--domain-field", "topic"], "has no field 'topic' for its domain; its fields: 'text', 'domain', 'source'"),
        (["--domain-field", "text"], "need at least two domains of 4 documents each (--domain-field, --tokens), got"),
        (["--json", "nowhere/o.json"], "--json: cannot write nowhere/o.json: the directory"),
        (["--latents", "65"], f"latents: {SITE} has 64, need 1 to as many, got 65"),
        (["--tokens", "20"], "data: need at least two domains of 4 documents each (--domain-field, --tokens), got"),
    ],
)
def test_one_clear_line(
    changes: list[str], message: str, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, [*commands(good, tmp_path)["reuse"], *changes])
    assert list(tmp_path.iterdir()) == []


def test_the_section_of_eval_is_the_study_of_the_same_documents(good: dict[str, Path], tmp_path: Path) -> None:
    """What eval is told of text and positions holds for the section, too; page and terminal have it."""
    text = {"tokens": [350], "context": [12], "bos": ["never"], "seed": [2], "batch_size": [3], "leave_first": [1]}
    paths = {"json": tmp_path / "o.json", "html": tmp_path / "o.html"}
    outputs = {name: [path] for name, path in paths.items()}
    done = run(arguments(good, reuse=[], baselines=["none"], no_cumulative=[], **text, **outputs))
    assert done.code == 0, done.err
    report = json.loads(paths["json"].read_text())
    section = report["extras"]["reuse"]
    model = AutoModelForCausalLM.from_pretrained(good["model"]).eval()
    tokens = Tokens(AutoTokenizer.from_pretrained(good["model"]), 12, bos=False)
    documents = load_documents([str(good["data"])], seed=2)
    options = Options(wanted=350, batch_size=3, seed=2, rule=Leave(first=1))
    found = json.loads(json.dumps(measure_reuse(model, tokens, {site: load(good[site]) for site in SITES}, documents,
                                                options)))  # fmt: skip
    assert section.pop("run")["passes"] == found.pop("run")["passes"]
    assert {name: section[name] for name in found} == found
    assert [row["transfer"]["curve"][0]["latents"] for row in section["sites"]] == [2, 2]
    assert len(section["links"]) == 1
    assert sum(section["tokens"].values()) == report["tokens"]
    page = paths["html"].read_text()
    headings = [unescape(re.sub(r"<[^>]*>", "", one)) for one in re.findall(r"<h2>(.*?)</h2>", page)]
    assert headings[-7:-5] == ["What domains share", "From one domain to all, layers.1"]
    shown = unescape(re.sub(r"<[^>]*>", "", page)).replace("\u00a0", " ")
    assert reuse_sentence(found) in shown
    assert reuse_sentence(found) in " ".join(done.out.split())


@pytest.mark.parametrize("option", ["--compat saelens", "--clt {}", "--crosscoder {}", "--transcoders {}"])
def test_eval_refuses_the_section_beside_other_evaluations(
    option: str, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, value = option.format(good["model"]).split()
    saes = {} if name == "--compat" else {"sae": None, "bootstrap": None}
    argv = arguments(good, reuse=[], json=[tmp_path / "o.json"], **saes)
    assert f"--reuse: not with {name}, whose " in fails(capsys, [*argv, name, value])
    assert list(tmp_path.iterdir()) == []


def test_eval_is_whole_without_a_section_that_cannot_be_measured(good: dict[str, Path], tmp_path: Path) -> None:
    small = {"tokens": [30], "baselines": ["none"], "no_cumulative": [], "json": [tmp_path / "o.json"]}
    done = run(arguments(good, reuse=[], **small))
    message = "data: need at least two domains of 4 documents each (--domain-field, --tokens), got "
    assert (done.code, message in done.err) == (2, True), done.err
    assert done.err.splitlines()[-1].endswith("; the report is without that part")
    report = json.loads((tmp_path / "o.json").read_text())
    assert any(note.startswith(f"Left out: {message}") for note in report["notes"])
    assert "reuse" not in report["extras"]
    assert report["all_sites"]["delta_ce"]["nats"] is not None


@pytest.mark.parametrize("command", ["reuse", "breadth", "maps", "controls"])
def test_no_study_writes_over_its_text(
    command: str, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "eval.jsonl.gz"
    data.write_bytes(good["data"].read_bytes())
    argv = put(put(commands(good, tmp_path)[command], command, "--data", str(data)), command, "--json", str(data))
    assert f"--json: {data} is the file {data} of --data" in fails(capsys, argv)
    assert data.read_bytes() == good["data"].read_bytes()


def test_both_outputs_in_one_place(good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*commands(good, tmp_path)["reuse"], "--html", str(tmp_path / "o.json")]
    assert f"--json and --html: both are {tmp_path / 'o.json'}" in fails(capsys, argv)
    assert list(tmp_path.iterdir()) == []
