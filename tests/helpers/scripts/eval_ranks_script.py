"""The command `saekernels`, or evaluate(), as one rank of eval/store/test_ranks.py: small chunks, all saved.

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
from interrupted import after, in_small_chunks
from saekernels.cli import main

torch.set_num_threads(1)
odd = json.loads(sys.argv[1])
rank = int(os.environ.get("RANK", "0"))
in_small_chunks(odd.get("chunk", 40))
genuine = command.evaluate


def evaluate(model: Any, *given: Any, progress: Any, **options: Any) -> Any:
    dying, step = odd.get("dies", (None, 0))
    last = after(step, lambda: os.kill(os.getpid(), signal.SIGKILL)) if dying == rank else lambda done, total: None

    def both(done: int, total: int) -> None:
        last(done, total)
        progress(done, total)

    if odd.get("other_model") == rank:
        with torch.no_grad():
            next(iter(model.parameters()))[:] += 1.0
    return genuine(model, *given, progress=both, **options)


command.evaluate = evaluate
sys.exit(main(sys.argv[2:]))
