"""Runs a script as several processes, as torchrun does, that share one import of what it needs: seconds for each.

    python forked.py COUNT SCRIPT ARGUMENTS

The last line on stderr says how each process ended. Exits with the first code that is not 0; a signal's is negative.
"""

from __future__ import annotations

import ast
import os
import runpy
import socket
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def import_for(script: str) -> None:
    """What the script imports at its top."""
    imports = [
        node
        for node in ast.parse(Path(script).read_text()).body
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__")
    ]
    exec(compile(ast.Module(imports, []), script, "exec"), {})


def main(count: int, script: str) -> None:
    import_for(script)
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(count):
        process = os.fork()
        if process == 0:
            os.environ.update(world, RANK=str(rank), LOCAL_RANK=str(rank))
            sys.argv[:] = sys.argv[2:]
            runpy.run_path(script, run_name="__main__")
            sys.exit()
        started.append(process)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
    print("exit codes:", *codes, file=sys.stderr)
    sys.exit(next((code for code in codes if code), 0))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
