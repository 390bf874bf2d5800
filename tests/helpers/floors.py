"""The floors of the package, from the ground up, and the map of them that CONTRIBUTING.md shows.

    python tests/helpers/floors.py    # write that map anew, from this table and the rooms' own first lines

A room is a file or folder under saekernels/. It imports only rooms on floors below its own; rooms on one floor do not
know each other; no imports run in a circle, inside a room either. Imports inside functions, and those for types alone,
count: who reads the code meets them all the same.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from places import ROOT

PACKAGE = ROOT / "saekernels"
FLOORS = (
    ("errors.py", "_version.py", "_build_info.py", "example"),
    ("files", "display"),
    ("backends",),
    ("ops",),
    ("sae", "optim"),
    ("crosslayer",),
    ("formats", "adapters"),
    ("parallel", "adapters/sae_lens", "adapters/dictionary_learning", "adapters/circuit_tracer"),
    ("splice",),
    ("eval/text", "generation"),
    ("eval/sums", "training"),
    ("eval/store",),
    ("eval/passes", "eval/report"),
    ("eval/arguments.py", "eval/circumstances.py", "eval/measure.py", "eval/summarise.py"),
    ("eval/evaluate.py",),
    ("eval/studies", "eval/compat"),
    ("eval",),
    ("__init__.py",),
    ("bench/measure",),
    ("bench/ops",),
    ("bench/cpu",),
    ("bench/gpu",),
    ("bench/scale",),
    ("bench",),
    ("cli/options",),
    ("cli/commands",),
    ("cli",),
    ("__main__.py",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_FILES = 16
_MARKS = ("<!-- floors -->", "<!-- end -->")


def files() -> list[str]:
    """Every module of the package, as a path below it."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def room_of(file: str) -> str | None:
    """The room that holds a file: of those that fit, the one named most closely; None for a file in no room."""
    fitting = [room for room in FLOOR if file == room or file.startswith(room + "/")]
    return max(fitting, key=len, default=None)


def imports(source: str) -> Iterator[str]:
    """The modules of the package that a source imports anywhere in it, as paths; "." for a relative import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "."
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "saekernels":
                yield _file_of(name.split(".")[1:])


def _file_of(parts: list[str]) -> str:
    """The file that a dotted name leads to: a module, a package's __init__, or the module that defines the name."""
    while parts:
        place = "/".join(parts)
        if (PACKAGE / f"{place}.py").exists():
            return f"{place}.py"
        if (PACKAGE / place / "__init__.py").exists():
            return f"{place}/__init__.py"
        parts = parts[:-1]
    return "__init__.py"


@functools.cache
def graph() -> dict[str, set[str]]:
    """file -> files that it imports, itself left out."""
    return {file: set(imports((PACKAGE / file).read_text(encoding="utf-8"))) - {file} for file in files()}


def wrong_arrows(arrows: dict[str, set[str]]) -> list[str]:
    """Every import that does not run to a lower floor, in words."""
    told = []
    for file, targets in arrows.items():
        for target in sorted(targets):
            own, other = room_of(file), room_of(target)
            if own is None or other is None or own == other or FLOOR[other] < FLOOR[own]:
                continue
            how = "a room beside it" if FLOOR[own] == FLOOR[other] else "a room above it"
            told.append(f"saekernels/{file} ({own}) imports saekernels/{target} ({other}), {how}")
    return told


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Files that import each other in a circle, the first found; empty if there is none."""
    done: set[str] = set()

    def visit(file: str, path: list[str]) -> list[str]:
        if file in path:
            return [*path[path.index(file) :], file]
        if file in done:
            return []
        for target in sorted(arrows.get(file, ())):
            if found := visit(target, [*path, file]):
                return found
        done.add(file)
        return []

    return next((found for file in arrows if (found := visit(file, []))), [])


def rule_of(room: str) -> str:
    """The first sentence of a room: the first line of its docstring."""
    path = PACKAGE / room if room.endswith(".py") else PACKAGE / room / "__init__.py"
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def table() -> str:
    """The map as Markdown, the highest floor first."""
    lines = ["| floor | room | what belongs there |", "|---|---|---|"]
    for number in reversed(range(len(FLOORS))):
        for room in FLOORS[number]:
            lines.append(f"| {number} | `{room}{'' if room.endswith('.py') else '/'}` | {rule_of(room)} |")  # noqa: PERF401
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """A page with the map between its marks."""
    before, _, rest = page.partition(_MARKS[0])
    return f"{before}{_MARKS[0]}\n{table()}{_MARKS[1]}{rest.partition(_MARKS[1])[2]}"


if __name__ == "__main__":
    CONTRIBUTING = Path(ROOT / "CONTRIBUTING.md")
    CONTRIBUTING.write_text(with_table(CONTRIBUTING.read_text(encoding="utf-8")), encoding="utf-8")
