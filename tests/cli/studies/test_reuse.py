"""`saekernels reuse` from the command line: what it prints is what it writes, on toy files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import SITE, commands, fails, run
from saekernels.display.numbers import percent, signed
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
        (["--latents", "65"], f"latents: {SITE} has 64, need 1 to as many, got 65"),
        (["--tokens", "20"], "data: need at least two domains of 4 documents each (--domain-field, --tokens), got"),
    ],
)
def test_one_clear_line(
    changes: list[str], message: str, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, [*commands(good, tmp_path)["reuse"], *changes])
    assert list(tmp_path.iterdir()) == []
