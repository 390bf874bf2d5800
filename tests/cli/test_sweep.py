"""Every command with every kind of bad input: exit code 2 and one line that names what is wrong; nothing is written.

`pytest -m slow tests/cli/test_sweep.py` goes through all kinds for all commands; without it a slice of them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import bad_inputs
import tiny_lm
from cli import SITE, commands, complaint, options, put, run

# Options whose value is a file or a folder: what stands for it, and what is wrong with that.
FILES = {
    "--model": ("model", {**bad_inputs.FOLDERS, **bad_inputs.within("config.json"),
                          **bad_inputs.within("model.safetensors"), **bad_inputs.within("tokenizer.json")}),
    "--tokenizer": ("model", {**bad_inputs.FOLDERS, **bad_inputs.within("tokenizer.json")}),
    "--sae": (SITE, {**bad_inputs.FOLDERS, **bad_inputs.within("cfg.json"),
                     **bad_inputs.within("sae_weights.safetensors")}),
    "--data": ("data", bad_inputs.NAMES),
    "--off-data": ("data", bad_inputs.NAMES),
    "--prompts": ("data", bad_inputs.NAMES),
    "--labels": ("labels", bad_inputs.FILES),
    "--family": ("family", bad_inputs.FILES),
    "--tasks": ("tasks", bad_inputs.FILES),
    "--device-map": ("report", bad_inputs.FILES),
    "--config": ("report", bad_inputs.FILES),
    "--sae-config": ("report", bad_inputs.FILES),
    "--train-tokens": ("tokens", {**bad_inputs.FILES, "cut": bad_inputs.FILES["missing"]}),
    "source": (SITE, {**bad_inputs.FOLDERS, **bad_inputs.within("cfg.json")}),
    "path": (SITE, {**bad_inputs.FOLDERS, **bad_inputs.within("cfg.json")}),
    "--adapter": ("model", bad_inputs.FOLDERS),
    **dict.fromkeys(("--clt", "--crosscoder", "--transcoders", "--beside"), ("model", bad_inputs.FOLDERS)),
    "a": ("report", bad_inputs.FILES),
    "b": ("report", bad_inputs.FILES),
}  # fmt: skip
OUTPUTS = ("--json", "--html", "--csv", "--events", "--out", "--checkpoint", "out")
WORDS = {
    "--dtype": "int8", "--sae-dtype": "int8", "--bos": "x", "--device": "toaster", "--baselines": "zero,,mean",
    "--compat": "x", "--format": "x", "--edit": f"{SITE}:1:set", "--watch": f"{SITE}:1>1e", "--site": "x",
    "model": "nowhere-1", "--sites": "x", "--stop": f"{SITE}:1>x", "--cache": "x",
    "--domain": "x", "--upstream": "x", "--downstream": "x", "--gpu": "x", "--card": "x", "--ops": "x", "--dtypes": "x",
    "--classes": "x",
    "--shapes": "1,2", "--kernels": "x", "--checks": "x", "--template": "(" * 3000, "--breadth": "x", "--token": "\0",
    "--sae-format": "x", "--parts": "error,,bits", "--control": "x",
    "--position": "first", "--train": "all", "--by": "x", "--group-field": "x", "--positive": "x",
}  # fmt: skip
# Any text is right: names of fields and of revisions, and prompts.
FREE = ("--text-field", "--domain-field", "--label-field", "--revision", "--sae-revision", "prompt")


NUMERIC = ("whole_number", "number", "tokens_or_all", "count", "seconds", "positive", "_spread")
NUMBERS = [(command, option) for command, option, kind in options() if kind in NUMERIC]


def takes(option: str) -> list[str]:
    """The commands with that option."""
    return list(dict.fromkeys(command for command, one, _ in options() if one == option))


def cases(table: Any) -> list[Any]:
    """(command, option) of every command with an option of the table; all but the first of each only when slow."""
    found = []
    for option in table:
        for number, command in enumerate(takes(option)):
            marks = [pytest.mark.slow] if number and option not in ("a", "b", "--out", "out") else []
            found.append(pytest.param(command, option, marks=marks, id=f"{command} {option}"))
    return found


def test_the_sweep_knows_every_option() -> None:
    known = {*FILES, *OUTPUTS, *WORDS, *FREE, *(option for _, option in NUMBERS)}
    assert {option for _, option, _ in options()} - known == {"--ranks", "--entries"} - {o for _, o in NUMBERS}
    assert set(commands({SITE: Path(), **dict.fromkeys((*tiny_lm.SITES, "model", "data"), Path())}, Path())) >= {
        command for command, _, _ in options()
    }


def test_the_commands_that_are_spoilt_here_are_right(good: dict[str, Path], tmp_path: Path) -> None:
    for name, argv in commands(good, tmp_path).items():
        if not name.startswith("bench"):
            assert run(argv).code == 0, name


@pytest.mark.parametrize(("command", "option"), cases(FILES))
def test_a_bad_file(command: str, option: str, good: dict[str, Path], tmp_path: Path) -> None:
    of, kinds = FILES[option]
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    failures = {}
    for number, (kind, make) in enumerate(kinds.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        value = make(folder, good[of])
        argv = put(commands(good, outputs)[command], command, option, f"{SITE}={value}" if option == "--sae" else value)
        names = "tokenizer" if kind.startswith("tokenizer") else option
        if (command, option) == ("scaling fit", "--model"):
            names = ""  # its tokenizer is looked for in the last model, and may be what is named
        failures[kind] = complaint(argv, "" if option in ("a", "b", "source", "path") else names, outputs)
    assert {kind: one for kind, one in failures.items() if one} == {}


@pytest.mark.parametrize(("command", "option"), cases(OUTPUTS))
def test_a_place_that_cannot_be_written(command: str, option: str, good: dict[str, Path], tmp_path: Path) -> None:
    if command == "info" or (command, option) == ("bench gpu", "--json"):
        pytest.skip("--json is a switch there, or needs a GPU")
    is_folder = option in ("--checkpoint", "out") or command == "bench"
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    failures = {}
    for number, (kind, make) in enumerate((bad_inputs.OUTPUTS if is_folder else bad_inputs.OUTPUT_FILES).items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        argv = put(commands(good, outputs)[command], command, option, make(folder, Path("o.json")))
        failures[kind] = complaint(argv, "", outputs)
    assert {kind: one for kind, one in failures.items() if one} == {}


@pytest.mark.parametrize("suffix", bad_inputs.TEXTS)
def test_bad_texts(suffix: str, good: dict[str, Path], tmp_path: Path) -> None:
    failures = {}
    for kind, content in bad_inputs.TEXTS[suffix].items():
        data = tmp_path / f"bad{suffix}"
        data.write_bytes(content)
        argv = put(commands(good, tmp_path / "none")["eval"], "eval", "--data", str(data))
        argv = argv[: argv.index("--json")]
        failures[kind] = complaint(argv, "", tmp_path / "none")
    assert {kind: one for kind, one in failures.items() if one} == {}


def numbers(command: str, option: str, values: tuple[str, ...], good: dict[str, Path], outputs: Path) -> dict[str, str]:
    argv = commands(good, outputs)[command]
    found = {value[:20]: complaint(put(argv, command, option, value), option, outputs) for value in values}
    return {value: one for value, one in found.items() if one}


@pytest.mark.parametrize(("command", "option"), NUMBERS, ids=[" ".join(one) for one in NUMBERS])
def test_what_is_no_number(command: str, option: str, good: dict[str, Path], tmp_path: Path) -> None:
    values = tuple(one for one in bad_inputs.NUMBERS[:4] if (option, one) != ("--latent-parallel", "auto"))
    assert numbers(command, option, values, good, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "option"), NUMBERS, ids=[" ".join(one) for one in NUMBERS])
def test_what_is_no_number_of_any_kind(command: str, option: str, good: dict[str, Path], tmp_path: Path) -> None:
    of_fractions = ("--budget", "--input-scale", "--sae-input-scale", "--rise", "--leave-norm", "--temperature")
    fractions = ("1.5",) if option in of_fractions else ()
    values = tuple(one for one in bad_inputs.NUMBERS[4:] if one not in fractions)
    assert numbers(command, option, values, good, tmp_path) == {}


@pytest.mark.parametrize("command", ["eval", "breadth", "maps", "compare"])
def test_more_replicates_than_memory_holds(command: str, good: dict[str, Path], tmp_path: Path) -> None:
    assert numbers(command, "--bootstrap", bad_inputs.HUGE, good, tmp_path) == {}
    line = run(put(commands(good, tmp_path)[command], command, "--bootstrap", "1000001")).err
    assert f"argument --bootstrap: need at most 1,000,000, got 1000001 (see saekernels {command} --help)" in line


@pytest.mark.slow
@pytest.mark.parametrize(("command", "option"), NUMBERS, ids=[" ".join(one) for one in NUMBERS])
def test_a_huge_number_is_taken_or_refused(command: str, option: str, good: dict[str, Path], tmp_path: Path) -> None:
    if command.startswith("bench"):
        pytest.skip("it may be right, and takes as long as it says")
    for value in bad_inputs.HUGE:
        found = run(put(commands(good, tmp_path)[command], command, option, value))
        assert found.code in (0, 2), found
        assert "Traceback" not in found.err
        assert found.err.count("\n") <= 1 + (found.code == 0), found


@pytest.mark.parametrize(("command", "option"), cases(WORDS))
def test_a_word_that_is_not_known(command: str, option: str, good: dict[str, Path], tmp_path: Path) -> None:
    argv = put(commands(good, tmp_path)[command], command, option, WORDS[option])
    assert complaint(argv, option, tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize(("option", "file"), [("--model", "config.json"), ("--sae", "cfg.json")])
def test_a_field_of_a_config_is_of_another_type(option: str, file: str, good: dict[str, Path], tmp_path: Path) -> None:
    of = good["model" if option == "--model" else SITE]
    config = json.loads((of / file).read_text())
    folder = tmp_path / "copy"
    shutil.copytree(of, folder)
    failures = {}
    for kind, changed in bad_inputs.wrong_values(config):
        (folder / file).write_text(json.dumps(changed))
        argv = put(
            commands(good, tmp_path)["eval"], "eval", option, f"{SITE}={folder}" if option == "--sae" else str(folder)
        )
        try:
            found = run(argv[: argv.index("--json")])
        except BaseException as error:
            failures[kind] = f"{type(error).__name__}: {error!s:.200}"
            continue
        if found.code not in (0, 2) or (found.code == 2 and (found.out or found.err.count("\n") != 1)):
            failures[kind] = found
    assert failures == {}


def test_names_of_all_letters(good: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "größe 🙂 = x"
    folder.mkdir()
    (folder / "text ü.jsonl").write_bytes(bad_inputs.RECORDS * 3)
    (folder / "sae").symlink_to(good[SITE])
    argv = put(commands(good, folder)["eval"], "eval", "--data", str(folder / "text ü.jsonl"))
    assert run(put(argv, "eval", "--sae", f"{SITE}={folder / 'sae'}")).code == 0
    assert json.loads((folder / "o.json").read_text())["tokens"] > 10
