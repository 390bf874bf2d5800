"""A compiler for old Linux systems: Zig's clang and libc++, against the symbols of glibc 2.28, on any Linux machine.

GCC of a current distribution cannot do it: its libstdc++ needs symbols that glibc got later, linked statically too.
libc++ is linked in, so that the module needs nothing but glibc.
"""

from __future__ import annotations

import sys
from pathlib import Path

GLIBC = "2.28"


def variables(folder: Path, machine: str) -> dict[str, str]:
    """The environment in which setup.py compiles with it; `folder` gets the commands that stand for the tools."""
    folder.mkdir(parents=True, exist_ok=True)
    target = f"{machine}-linux-gnu.{GLIBC}"
    tools = {"c++": f"c++ -target {target}", "ar": "ar", "ranlib": "ranlib"}
    for name, command in tools.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {command} "$@"\n')
        script.chmod(0o755)
    definitions = {
        "CMAKE_AR": folder / "ar",
        "CMAKE_RANLIB": folder / "ranlib",
        "CMAKE_MODULE_LINKER_FLAGS": "-s",  # no symbols for debuggers
        # Zig compiles libc++ for every new set of linker flags. So nothing is linked to be tried out, and pybind11 does
        # not look whether it could optimize across files, which the module does not ask for.
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "HAS_FLTO": "OFF",
        "HAS_FLTO_AUTO": "OFF",
        "HAS_FLTO_THIN": "OFF",
    }
    given = " ".join(f"-D{name}={value}" for name, value in definitions.items())
    return {"CXX": str(folder / "c++"), "CMAKE_ARGS": given}
