"""parse: PTX text to a list of instructions whose jumps are numbers; blocks in braces have labels of their own."""

from __future__ import annotations

import re
from typing import NamedTuple

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
# Lines that say where in the source something came from, and what is written around the code.
IGNORED = re.compile(r"^\s*\.(loc|pragma|file|section)\b[^\n;]*;?", re.M)
TOKEN = re.compile(r"(?P<label>\$?[A-Za-z_][\w$]*):(?!:)|(?P<brace>[{}])(?=\s)|(?P<code>[^;\s][^;]*);")
GUARD = re.compile(r"@(!?)(%?[\w$]+)\s+(.*)", re.S)
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
NUMBERED = re.compile(r"(%[\w$]+)<(\d+)>")
PARAMETER = re.compile(r"\.param\s+\.\w+[^,\n)]*?\s(\w+_param_\d+)")
TABLE = re.compile(r"\.branchtargets\s+(.*)", re.S)
Scope = tuple[int, ...]


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        guard: the predicate that it hangs on, or "".
        negated: whether on the predicate's opposite.
        words: the operation's name at its dots.
        operands: as written, those in braces or brackets as one.
        targets: where a branch goes, places in the program; several if it takes one of a table.
        text: the line, for messages.
    """

    guard: str
    negated: bool
    words: tuple[str, ...]
    operands: tuple[str, ...]
    targets: tuple[int, ...]
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
    lines: list[tuple[str, Scope]] = []
    labels: dict[tuple[Scope, str], int] = {}
    tables: dict[str, list[str]] = {}
    scope: Scope = ()
    label = ""
    for number, token in enumerate(TOKEN.finditer(body)):
        if token["label"]:
            label = token["label"]
            labels[scope, label] = len(lines)
        elif token["brace"]:
            scope = (*scope, number) if token["brace"] == "{" else scope[:-1]
            if not scope:
                break  # what follows a kernel is for debuggers
        elif declared := REGISTERS.fullmatch(token["code"]):
            types.update(dict.fromkeys(_names(declared[2]), declared[1]))
        elif table := TABLE.fullmatch(token["code"]):
            tables[label] = several(table[1])
        else:
            lines.append((" ".join(token["code"].split()), scope))
    return Program([_instruction(line, scope, labels, tables) for line, scope in lines], types, parameters)


def several(operand: str) -> list[str]:
    """The registers of an operand, in braces or alone."""
    return [part.strip() for part in operand.strip("{} ").split(",")]


def _names(declared: str) -> list[str]:
    names = []
    for part in declared.split(","):
        numbered = NUMBERED.fullmatch(part.strip())
        names += [f"{numbered[1]}{n}" for n in range(int(numbered[2]))] if numbered else [part.strip()]
    return names


def _instruction(
    line: str, scope: Scope, labels: dict[tuple[Scope, str], int], tables: dict[str, list[str]]
) -> Instruction:
    guard = GUARD.fullmatch(line)
    code = guard[3] if guard else line
    name, _, rest = code.partition(" ")
    words, operands = tuple(name.split(".")), _operands(rest)
    names = {"bra": list(operands), "brx": tables.get(operands[-1], []) if operands else []}.get(words[0], [])
    targets = tuple(
        next(labels[scope[:n], label] for n in range(len(scope), -1, -1) if (scope[:n], label) in labels)
        for label in names
    )
    return Instruction(guard[2] if guard else "", bool(guard and guard[1]), words, operands, targets, line)


def _operands(text: str) -> tuple[str, ...]:
    """Split at the commas that are in no braces or brackets."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]])+", text)
    return tuple(part.strip() for part in parts if part.strip())
