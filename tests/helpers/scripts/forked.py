"""Runs scripts as several processes each, as torchrun does, which share one import of what they need: seconds for each.

Started by ranks.py. A line on stdin is a JSON object with the arguments of `run`; its answer on stdout is their exit
codes. Ends with its stdin.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
import runpy
import socket
import sys
import traceback
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
    with contextlib.redirect_stdout(sys.stderr):  # what packages print as they are imported is no answer
        exec(compile(ast.Module(imports, []), script, "exec"), {})


def execute(command: list[str]) -> int:
    """A script's exit code."""
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run(command: list[str], ranks: int, out: str, err: str, dismantled: bool) -> list[int]:
    """The exit codes of a script with its arguments in so many processes; a signal's are negative.

    All of them write to the files `out` and `err`. Python takes itself apart at their end only where that is asked
    for: with all that is imported here it takes a second.
    """
    import_for(command[0])
    gc.collect()
    gc.freeze()  # what all share is no garbage in any of them
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(ranks):
        process = os.fork()
        if process == 0:
            for descriptor, path in ((0, os.devnull), (1, out), (2, err)):
                os.dup2(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), descriptor)
            os.environ.update(world, RANK=str(rank), LOCAL_RANK=str(rank))
            sys.argv[:] = command
            code = execute(command)
            if dismantled:
                gc.unfreeze()
                sys.exit(code)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        started.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
