"""Evaluations shared by several processes: the report of one, a lost process, resuming with any number of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ranks
import tiny_lm
from cli import fails
from interrupted import in_small_chunks
from places import SCRIPTS
from saekernels.cli import main

SCRIPT = str(SCRIPTS / "eval_ranks_script.py")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name the tiny model, its SAEs and its documents."""
    folder = tmp_path_factory.mktemp("tiny")
    made = tiny_lm.save(folder)
    data = folder / "text.jsonl"
    records = [{"text": one.text, "domain": one.domain} for one in tiny_lm.documents()]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    saes = [f"{site}={made[site]}" for site in tiny_lm.SITES]
    return ["--model", str(made["model"]), "--sae", *saes, "--data", str(data), "--tokens", "all", "--bootstrap", "20"]


def alone(files: list[str], folder: Path, chunk: int = 40) -> dict[str, Any]:
    """The report of one process, this one, and its sums per document."""
    with pytest.MonkeyPatch.context() as patch:
        in_small_chunks(chunk, patch.setattr)
        assert main(command_of(files, folder)) == 0
    return outcome(folder)


def together(
    count: int, files: list[str], folder: Path, odd: dict[str, Any] | None = None, launcher: Any = ranks.forked
) -> tuple[Any, str]:
    """Exit codes by process, or torchrun's own, and stderr of a run of so many processes."""
    codes, _, err = launcher(count, SCRIPT, json.dumps(odd or {}), *command_of(files, folder))
    return codes, err


def command_of(files: list[str], folder: Path) -> list[str]:
    return ["eval", *files, "--json", f"{folder}.json", "--checkpoint", str(folder)]


def outcome(folder: Path) -> dict[str, Any]:
    report = json.loads(Path(f"{folder}.json").read_text())
    report.pop("run")
    return {"report": report, "sums": (folder / "documents.f64").read_bytes()}


@pytest.fixture(scope="module")
def whole(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return alone(files, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)])
def test_the_report_is_that_of_one_process(count: int, files: list[str], whole: dict[str, Any], tmp_path: Path) -> None:
    codes, err = together(count, files, tmp_path / "run")
    assert codes == [0] * count, err[-3000:]
    assert outcome(tmp_path / "run") == whole, "to the bit"


def test_processes_without_a_share_only_wait(files: list[str], tmp_path: Path) -> None:
    want = alone(files, tmp_path / "alone", chunk=10**6)
    codes, err = together(3, files, tmp_path / "three", {"chunk": 10**6})
    assert codes == [0, 0, 0], err[-3000:]
    assert outcome(tmp_path / "three") == want


def loses(lost: int, step: int, count: int, files: list[str], folder: Path, launcher: Any) -> Any:
    """The exit codes of a run that loses a process at a step: the others tell how it goes on."""
    codes, err = together(count, files, folder, {"dies": [lost, step]}, launcher)
    told = [line for line in err.splitlines() if " stopped: " in line and f" of {count} " in line]
    assert told, err[-3000:]
    for line in told:
        assert f"rank {lost} of" not in line, "the lost one says nothing"
        assert line.endswith(
            f"what was done is in {folder}: the same command, with any number of processes, goes on from there"
        )
    assert not Path(f"{folder}.json").exists()
    return codes


@pytest.mark.slow
def test_a_lost_process_stops_all_and_any_number_go_on(files: list[str], whole: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert loses(1, 12, 3, files, folder, ranks.forked) == [3, -9, 3]
    assert loses(0, 3, 2, files, folder, ranks.forked) == [-9, 3]
    codes, err = together(2, files, folder)
    assert codes == [0, 0], err[-3000:]
    assert outcome(folder) == whole, "to the bit"


@pytest.mark.slow  # each process imports all that it needs; CI runs it
def test_so_it_does_under_torchrun_which_stops_them_itself(
    files: list[str], whole: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert loses(1, 12, 3, files, folder, ranks.torchrun) == 1
    code, err = together(2, files, folder, launcher=ranks.torchrun)
    assert code == 0, err[-3000:]
    assert outcome(folder) == whole, "to the bit"


@pytest.mark.parametrize("step", [1, 9])
def test_a_process_lost_within_an_sae_is_told_without_a_launcher(step: int, files: list[str], tmp_path: Path) -> None:
    """Nothing ends the survivor from outside: it notices in the middle of the codes' merge."""
    codes, err = together(2, [*files, "--latent-parallel", "2"], tmp_path / "run", {"dies": [1, step]})
    assert codes == [3, -9], err[-3000:]
    assert "rank 0 of 2 stopped: a process of the evaluation is lost" in err
    assert "Traceback" not in err


def test_a_place_outside_of_the_processes_is_refused(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "5")
    told = fails(capsys, command_of(files, tmp_path / "run"))
    assert "RANK: got 5, need 0 to 1 for WORLD_SIZE = 2" in told


def test_a_process_with_another_model_is_noticed_by_all(files: list[str], tmp_path: Path) -> None:
    codes, err = together(2, files, tmp_path / "run", {"other_model": 1})
    told = [line for line in err.splitlines() if line.startswith("saekernels eval: error:")]
    assert codes == [2, 2], err[-3000:]
    assert len(told) == 1, err[-3000:]
    assert "model: rank 1 has" in told[0]
    assert "the first rank" in told[0]


def test_bad_input_is_told_once(files: list[str], tmp_path: Path) -> None:
    codes, err = together(2, [*files, "--sae", "model.layers.9=nowhere"], tmp_path / "run")
    told = [line for line in err.splitlines() if line.startswith("saekernels eval: error:")]
    assert codes == [2, 2], err[-3000:]
    assert len(told) == 1, err[-3000:]
    assert "nowhere" in told[0], err[-3000:]


@pytest.mark.slow
def test_latents_and_documents_are_spread_at_once(files: list[str], whole: dict[str, Any], tmp_path: Path) -> None:
    """Two by two processes: the codes are the same, so all figures are, up to the rounding of reconstructions."""
    codes, err = together(4, [*files, "--latent-parallel", "2"], tmp_path / "run")
    assert codes == [0] * 4, err[-3000:]
    want, got = whole["report"], outcome(tmp_path / "run")["report"]
    for a, b in zip([*want["sites"], want["all_sites"]], [*got["sites"], got["all_sites"]], strict=True):
        assert a["l0"] == b["l0"]
        assert a["dead_fraction"] == b["dead_fraction"]
        assert b["delta_ce"]["nats"] == pytest.approx(a["delta_ce"]["nats"], abs=2e-5)
        assert b["fvu"] == pytest.approx(a["fvu"], rel=1e-5)
    codes, err = together(2, [*files, "--latent-parallel", "2"], tmp_path / "again")
    assert codes == [0, 0], err[-3000:]
    assert outcome(tmp_path / "again") == outcome(tmp_path / "run"), "documents shared out or not, to the bit"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--latent-parallel", "2"], "--latent-parallel: got 2, need a divisor of the 3 processes"),
        (["maps"], "saekernels maps runs in one process, got 3 from the launcher; start it without torchrun"),
        (["eval", "--compat", "saelens"], "--compat runs in one process, got 3"),
    ],
)
def test_what_processes_cannot_do_together_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert message in fails(capsys, arguments)
