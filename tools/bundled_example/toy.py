"""A toy corpus from text at hand: some modules of the running Python and the docstrings of others. No network."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sources import Source

CAPS = {"python_source": 400_000, "docstrings": 200_000}


def _docstrings(source: str) -> str:
    nodes = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
    )
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))


def documents() -> Iterator[Source]:
    package = "CPython standard library"
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(path.stem) % 2:
            yield Source(text, "python_source", f"stdlib/{path.name}", package, "PSF-2.0")
        else:
            yield Source(_docstrings(text), "docstrings", f"docstrings/{path.name}", package, "PSF-2.0")
