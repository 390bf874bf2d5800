"""Every page of help: groups, defaults once and as typed, examples that parse, lines that fit."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator

import pytest

from saekernels.cli import main
from saekernels.cli.entry import FAMILIES, build_parser
from saekernels.cli.options.arguments import Parser

WIDTH = 100
GROUPS = {
    "model", "what the SAEs' files do not say, of every --sae", "text", "precision and device",
    "positions left as they are", "baselines and intervals", "layers replaced together", "extras", "scale and resume",
    "output",
}  # fmt: skip
# What is not done unless it is asked for: there is nothing to tell.
# Options of those names that have a default here.
NOT_OFF = (
    ("saekernels bench gpu", "--json"),
    ("saekernels info", "--format"),
    ("saekernels convert", "--format"),
    ("saekernels probe", "--label-field"),
)
OFF = {
    "--adapter", "--beside", "--breadth", "--checkpoint", "--clt", "--compat", "--control", "--crosscoder", "--csv",
    "--device-map", "--edit", "--events", "--format", "--html", "--json", "--label-field", "--tasks", "--train-tokens",
    "--transcoders",
}  # fmt: skip


def parsers(parser: Parser) -> Iterator[Parser]:
    """The parser and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


ALL = {parser.prog: parser for parser in parsers(build_parser())}


def options(parser: Parser) -> dict[str, argparse.Action]:
    """Options with a value, by name."""
    return {one.option_strings[-1]: one for one in parser._actions if one.option_strings and one.nargs != 0}


def told(parser: Parser, action: argparse.Action) -> str:
    """The line of help of an option, as it is shown."""
    formatter = parser._get_formatter()
    return " ".join(formatter._expand_help(action).split())


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    # argparse keeps two columns free.
    monkeypatch.setenv("COLUMNS", str(WIDTH + 2))


def test_there_are_three_families_and_every_command_is_in_one() -> None:
    assert list(FAMILIES) == ["evaluate", "files", "this machine"]
    text = build_parser().format_help()
    assert "COMMAND ..." in text.splitlines()[0]
    names = [name.split()[1] for name in ALL if name.count(" ") == 1]
    places = {name: text.index(f"\n  {name} ") for name in names}
    heads = [text.index(f"\n{title}:") for title in FAMILIES]
    assert len(names) == sum(map(len, FAMILIES.values())) == 15
    assert {name for name in names if places[name] > heads[2]} == {"bench", "info", "plan"}
    assert {name for name in names if heads[1] < places[name] < heads[2]} == {"convert"}
    assert min(places.values()) > heads[0]


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_in_a_group_with_a_name_and_has_help(name: str) -> None:
    for group in ALL[name]._action_groups:
        listed = [one for one in group._group_actions if one.help is not argparse.SUPPRESS]
        if group.title in ("options", "optional arguments", "positional arguments"):
            assert listed == []
        assert all(one.help for one in listed if not isinstance(one, argparse._SubParsersAction)), group.title


def test_the_groups_of_eval() -> None:
    titles = [group.title for group in ALL["saekernels eval"]._action_groups if group._group_actions]
    assert set(titles) == {"help", *GROUPS}
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("name", ALL)
def test_every_default_is_told_once_and_as_one_would_type_it(name: str) -> None:
    parser = ALL[name]
    for option, action in options(parser).items():
        text = told(parser, action)
        off = option in OFF and (name, option) not in NOT_OFF
        wanted = int(not action.required and not off)
        assert text.count("default") == wanted, f"{option}: {text}"
        assert not re.search(r"None|True|False|\('|\[\]|\['", text), f"{option}: {text}"
        if action.default in (None, []):
            continue
        (shown,) = re.findall(r"\(default: ([^)]+)\)$", text)
        words = shown.split() if action.nargs == "+" else [shown]
        convert = action.type if callable(action.type) else str
        parsed = [convert(word) for word in words]
        default = convert(action.default) if isinstance(action.default, str) else action.default
        assert parsed == (default if action.nargs == "+" else [default]), option


@pytest.mark.parametrize("name", ALL)
def test_a_page_ends_with_examples_that_parse(name: str) -> None:
    parser, text = ALL[name], ALL[name].format_help()
    assert parser.examples
    shown = re.split(r"\nexamples?:\n", text)[1].splitlines()
    assert len(shown) == len(parser.examples)
    for line in shown:
        words = shlex.split(line, comments=True)
        assert words[0] == "saekernels"
        assert line.startswith("  saekernels")
        build_parser().parse_args(words[1:])
        assert " ".join(words).startswith(name)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [80, WIDTH])
def test_no_line_is_too_wide_or_ends_in_blanks(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for line in ALL[name].format_help().splitlines():
        assert len(line) <= WIDTH, line
        assert line == line.rstrip(), line


def test_a_wide_terminal_does_not_widen_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= WIDTH
