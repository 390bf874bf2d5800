"""The command `saekernels`, or evaluate(), as one rank of tests/eval/test_ranks.py: small chunks, all states saved.

Arguments: a JSON object of what is odd about this run, then the command's own. "dies": [rank, after so many steps of
its progress]; "other_model": a rank that has another model; "chunk": positions of a chunk.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch

import saekernels.cli.commands.eval as command
from saekernels.cli import main
from saekernels.eval.store import window_files as spool
from saekernels.eval.store.run_folder import Workspace

torch.set_num_threads(1)
odd = json.loads(sys.argv[1])
rank = int(os.environ.get("RANK", "0"))
spool.CHUNK_POSITIONS, spool._CONTEXTS = odd.get("chunk", 40), 0
Workspace.__init__.__defaults__ = (0.0,)
genuine = command.evaluate


def evaluate(model: Any, *given: Any, progress: Any, **options: Any) -> Any:
    steps = 0

    def counted(done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if odd.get("dies") == [rank, steps]:
            os.kill(os.getpid(), signal.SIGKILL)
        progress(done, total)

    if odd.get("other_model") == rank:
        with torch.no_grad():
            next(iter(model.parameters()))[:] += 1.0
    return genuine(model, *given, progress=counted, **options)


command.evaluate = evaluate
sys.exit(main(sys.argv[2:]))
