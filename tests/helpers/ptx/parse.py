"""parse: PTX text to a list of instructions whose jumps are numbers; blocks in braces have labels of their own."""

from __future__ import annotations

import re
from typing import NamedTuple

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
# Lines that say where in the source something came from, and what is written around the code.
IGNORED = re.compile(r"^\s*\.(loc|pragma|file|section)\b[^\n;]*;?", re.M)
TOKEN = re.compile(r"(?P<label>\$?[A-Za-z_][\w$]*):(?!:)|(?P<brace>[{}])(?=\s)|(?P<code>[^;\s][^;]*);")
GUARD = re.compile(r"@(!?)(%[\w$]+)\s+(.*)", re.S)
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
NUMBERED = re.compile(r"(%[\w$]+)<(\d+)>")
PARAMETER = re.compile(r"\.param\s+\.\w+[^,\n)]*?\s(\w+_param_\d+)")


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        guard: the predicate that it hangs on, or "".
        negated: whether on the predicate's opposite.
        words: the operation's name at its dots.
        operands: as written, those in braces or brackets as one.
        target: where a branch goes, a place in the program, or -1.
        text: the line, for messages.
    """

    guard: str
    negated: bool
    words: tuple[str, ...]
    operands: tuple[str, ...]
    target: int
    text: str


class Program(NamedTuple):
    """A kernel: its instructions, the type of each register ("pred", "b32" and so on), its parameters' names."""

    instructions: list[Instruction]
    types: dict[str, str]
    parameters: list[str]


def parse(text: str) -> Program:
    """A Program from a module with one kernel, or from a bare block of code."""
    text = COMMENT.sub("", text)
    entry = text.find(".entry")
    parameters = PARAMETER.findall(text[entry:]) if entry >= 0 else []
    body = IGNORED.sub("", text[text.index("{", entry) :] if entry >= 0 else text)
    types: dict[str, str] = {}
    lines: list[tuple[str, tuple[int, ...]]] = []
    labels: dict[tuple[tuple[int, ...], str], int] = {}
    scope: tuple[int, ...] = ()
    for number, token in enumerate(TOKEN.finditer(body)):
        if token["label"]:
            labels[scope, token["label"]] = len(lines)
        elif token["brace"]:
            scope = (*scope, number) if token["brace"] == "{" else scope[:-1]
            if not scope:
                break  # what follows a kernel is for debuggers
        elif declared := REGISTERS.fullmatch(token["code"]):
            types.update(dict.fromkeys(_names(declared[2]), declared[1]))
        else:
            lines.append((" ".join(token["code"].split()), scope))
    return Program([_instruction(line, scope, labels) for line, scope in lines], types, parameters)


def _names(declared: str) -> list[str]:
    names = []
    for part in declared.split(","):
        numbered = NUMBERED.fullmatch(part.strip())
        names += [f"{numbered[1]}{n}" for n in range(int(numbered[2]))] if numbered else [part.strip()]
    return names


def _instruction(line: str, scope: tuple[int, ...], labels: dict[tuple[tuple[int, ...], str], int]) -> Instruction:
    guard = GUARD.fullmatch(line)
    code = guard[3] if guard else line
    name, _, rest = code.partition(" ")
    words, operands = tuple(name.split(".")), _operands(rest)
    target = -1
    if words[0] == "bra":
        target = next(
            labels[scope[:n], operands[0]] for n in range(len(scope), -1, -1) if (scope[:n], operands[0]) in labels
        )
    return Instruction(guard[2] if guard else "", bool(guard and guard[1]), words, operands, target, line)


def _operands(text: str) -> tuple[str, ...]:
    """Split at the commas that are in no braces or brackets."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]])+", text)
    return tuple(part.strip() for part in parts if part.strip())
